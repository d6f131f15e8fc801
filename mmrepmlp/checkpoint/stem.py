# SPDX-License-Identifier: Apache-2.0
"""Adapt the stem of a state dict to another number of image channels and another patch size."""

import torch
from torch import Tensor

from mmrepmlp.reparam import to_float64

from .tiles import resize_matrix

STEM = "patch_embed.projection.weight"


def adapt_stem(state: dict[str, Tensor], expected: torch.Size) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt the stem's convolution in a backbone's state dict to the number of image channels and the patch size of the
    model's, given its shape (O, I, height, width); also returns a description of each change."""
    weight, changes = state.get(STEM), []
    if weight is None or weight.dim() != 4 or weight.size(0) != expected[0]:
        return state, changes
    if weight.size(1) != expected[1]:
        changes.append(f"{weight.size(1)} -> {expected[1]} image channels")
        weight = adapt_channels(weight, expected[1])
    if weight.shape[2:] != expected[2:]:
        old, new = ("x".join(map(str, sides)) for sides in (weight.shape[2:], expected[2:]))
        changes.append(f"patches {old} -> {new}")
        weight = resize_patch(weight, tuple(expected[2:]))
    return ({**state, STEM: weight} if changes else state), changes


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a convolution (O, I, height, width) to another number of input channels; the response to equal channels
    stays the same.

    More channels repeat the present ones, each divided by the number of its repetitions; fewer are sums of the present
    ones, dealt out in turn. A single one is the sum of all. For 3 channels and multiples of 3, timm does the same.
    """
    present, precise = weight.size(1), to_float64(weight)
    index = torch.arange(max(present, channels), device=precise.device)
    matrix = precise.new_zeros(channels, present)
    matrix[index % channels, index % present] = 1
    matrix /= matrix.sum(0, keepdim=True)
    return torch.einsum("oihw,ji->ojhw", precise, matrix).to(weight)


def resize_patch(weight: Tensor, patch: tuple[int, int]) -> Tensor:
    """Resize the patch of a convolution (O, I, height, width): the larger one computes on an enlarged image what the
    smaller one does, and the response to a constant image stays the same."""
    precise = to_float64(weight)
    resize = resize_matrix(patch, tuple(weight.shape[2:])).to(precise)
    return (precise.flatten(2) @ resize).unflatten(2, patch).to(weight)
