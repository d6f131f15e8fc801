# SPDX-License-Identifier: Apache-2.0
"""Resample the fully connected layers of a state dict to another tile size."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

FC3 = re.compile(r"^stages\.(\d+)\.\d+\.repmlp_block\.fc3\.(weight|bias)$")


def resample_tiles(state: dict[str, Tensor], tiles: list[tuple[int, int]]) -> tuple[dict[str, Tensor], list[str]]:
    """Resample every ``fc3`` whose tile size differs from the model's.

    Local branches do not depend on the tile size and stay unchanged.

    Args:
        state: A backbone's state dict with our names, in any form.
        tiles: The model's tile (h, w) in pixels, one for each stage.

    Returns:
        The state dict, and a description of the change for each stage that changed.

    Raises:
        ValueError: The tile size of a layer cannot be inferred from its shape.
    """
    resampled, changes = {}, {}
    for name, value in state.items():
        match = FC3.match(name)
        weight = state.get(name.replace(".bias", ".weight"))
        if match and int(match[1]) < len(tiles) and weight is not None and weight.dim() > 1:
            new = tiles[int(match[1])]
            old = infer_tile(name, weight.size(1), new)
            if old != new:
                value = resample_weight(value, old, new) if match[2] == "weight" else resample_bias(value, old, new)
                changes[int(match[1])] = f"stage {match[1]} {old[0]}x{old[1]} -> {new[0]}x{new[1]}"
        resampled[name] = value
    return resampled, list(changes.values())


def infer_tile(name: str, pixels: int, like: tuple[int, int]) -> tuple[int, int]:
    """Infer height and width of a tile from its pixels: as the model's, of the same aspect ratio, or square."""
    h, w = like
    if h * w == pixels:
        return like
    scale = math.sqrt(pixels / (h * w))
    for tile in ((round(h * scale), round(w * scale)), (math.isqrt(pixels),) * 2):
        if tile[0] * tile[1] == pixels:
            return tile
    raise ValueError(
        f"{name} is for tiles of {pixels} pixels, which are neither square nor of the aspect ratio {h}:{w} of the "
        "model's tiles. Build the model with the img_size of the checkpoint."
    )


def resample_weight(weight: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a fully connected layer over the pixels of a tile: a linear operator on a grid.

    The new layer is the old one between two resampling matrices. One interpolates linearly from the smaller grid to the
    larger; the other is its pseudo-inverse, so that a round trip changes nothing and a larger tile computes what the
    smaller one did. Both map a constant image to itself, which preserves the response to it.

    Args:
        weight: Shape (S * P, P, 1, 1), for tiles of P = h * w pixels.
        old: The tile (h, w) of ``weight``.
        new: The tile (h', w') of the result.

    Returns:
        Shape (S * P', P', 1, 1).
    """
    pixels = old[0] * old[1]
    matrices = weight.double().view(-1, pixels, pixels)
    matrices = resize_matrix(old, new) @ matrices @ resize_matrix(new, old)
    return matrices.reshape(-1, new[0] * new[1], 1, 1).to(weight.dtype)


def resample_bias(bias: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample the bias (S * P,) of a fully connected layer over tiles to (S * P',)."""
    images = bias.double().view(-1, old[0] * old[1])
    return (images @ resize_matrix(old, new).T).flatten().to(bias.dtype)


def resize_matrix(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """The matrix (h' * w', h * w), float64, that resizes an image of h by w pixels; its rows sum to 1."""
    rows, columns = (resize_matrix_1d(*sides) for sides in zip(source, target))
    return torch.einsum("ai,bj->abij", rows, columns).reshape(target[0] * target[1], -1)


def resize_matrix_1d(source: int, target: int) -> Tensor:
    """The matrix (target, source), float64, that resizes a row of pixels, up by interpolation, down by the inverse."""
    if source > target:
        return torch.linalg.pinv(resize_matrix_1d(target, source))
    line = torch.eye(source, dtype=torch.float64)[None]  # each pixel alone, as a channel
    return F.interpolate(line, target, mode="linear", align_corners=False)[0].T
