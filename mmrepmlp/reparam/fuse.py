# SPDX-License-Identifier: Apache-2.0
"""Structural re-parameterization as plain tensor algebra.

Every function returns float64 and is differentiable, so that chained fusions round once, when the result is cast to the
dtype of the parameters that it replaces.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

WITH_FLOAT64 = ("cpu", "cuda", "meta")


def to_float64(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64, on the CPU if its device may lack float64, as MPS does."""
    return (tensor if tensor.device.type in WITH_FLOAT64 else tensor.cpu()).double()


class Affine(NamedTuple):
    """Weight and bias of a layer in eval mode.

    Attributes:
        weight: Weight of a convolution or linear layer, shape (O, ...), or scale of a norm, shape (C,); float64.
        bias: Bias (O,) or shift (C,); float64.
    """

    weight: Tensor
    bias: Tensor

    def repeat(self, times: int) -> "Affine":
        """Repeat scale and shift of a norm for ``times`` consecutive outputs of each channel."""
        return Affine(self.weight.repeat_interleave(times), self.bias.repeat_interleave(times))


def affine(layer: nn.Module) -> Affine | None:
    """Return the weight and bias of a layer in eval mode.

    Args:
        layer: A convolution, a linear layer, a batch norm, or a module with a method ``to_affine`` that returns them.

    Returns:
        Weight and bias; None for an identity, which fusing puts in the place of a norm.

    Raises:
        ValueError: A batch norm tracks no running statistics, so that its output depends on the batch.
    """
    if isinstance(layer, nn.Identity):
        return None
    if hasattr(layer, "to_affine"):
        return layer.to_affine()
    return affine_of_layer(layer)


def affine_of_layer(layer: nn.Module) -> Affine:
    """Return the weight and bias of a convolution, a linear layer or a batch norm, whatever its ``to_affine``."""
    if isinstance(layer, _BatchNorm):
        return affine_of_norm(layer)
    weight, bias = to_float64(layer.weight), getattr(layer, "bias", None)
    return Affine(weight, weight.new_zeros(len(weight)) if bias is None else to_float64(bias))


def affine_of_norm(norm: _BatchNorm) -> Affine:
    """Return the scale and shift of a batch norm in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"{norm} has track_running_stats=False: its output depends on the batch and cannot be fused. "
            "Use a norm_cfg with running statistics."
        )
    scale = torch.rsqrt(to_float64(norm.running_var) + norm.eps)
    if norm.weight is not None:
        scale = scale * to_float64(norm.weight)
    shift = -to_float64(norm.running_mean) * scale
    return Affine(scale, shift if norm.bias is None else shift + to_float64(norm.bias))


def fuse_after(layer: Affine, norm: Affine | None) -> Affine:
    """Fuse a norm into the convolution or linear layer before it.

    Args:
        layer: Weight (O, ...) and bias.
        norm: Scale (O,) and shift (O,), or a matrix (P, O) and shift (P,) if a pointwise convolution follows the norm;
            None for no norm.

    Returns:
        Weight and bias of the fused layer.
    """
    if norm is None:
        return layer
    scale, shift = norm
    weight, bias = (tensor.to(scale.device) for tensor in layer)  # constant kernels are on the CPU
    if scale.dim() == 2:
        return Affine((scale @ weight.flatten(1)).view(-1, *weight.shape[1:]), scale @ bias + shift)
    return Affine(weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + shift)


def fuse_before(norm: Affine | None, layer: Affine) -> Affine:
    """Fuse a norm into the pointwise convolution or linear layer after it.

    Args:
        norm: Scale and shift (I,); None for no norm.
        layer: Weight (O, I) or (O, I, 1, 1), and bias. Larger kernels cannot take in a shift where they see padding.

    Returns:
        Weight and bias of the fused layer.
    """
    if norm is None:
        return layer
    matrix = layer.weight.flatten(1)
    return Affine((matrix * norm.weight).view_as(layer.weight), matrix @ norm.bias + layer.bias)


def sum_kernels(layers: Iterable[Affine]) -> Affine:
    """Add up parallel convolutions, smaller kernels in the middle of the largest.

    Args:
        layers: Kernels (O, I / groups, h, w) whose heights and widths differ by even numbers, and biases.

    Returns:
        Kernel and bias of the sum.
    """
    kernels, biases = zip(*layers)
    height, width = (max(kernel.size(dim) for kernel in kernels) for dim in (2, 3))
    margins = [((height - kernel.size(2)) // 2, (width - kernel.size(3)) // 2) for kernel in kernels]
    return Affine(sum(F.pad(kernel, (w, w, h, h)) for kernel, (h, w) in zip(kernels, margins)), sum(biases))


def identity_kernel(like: Tensor, groups: int = 1) -> Tensor:
    """Return the kernel (C, C / groups, 1, 1) of a convolution that changes nothing.

    Args:
        like: Tensor (C, ...) whose number of channels, dtype and device the kernel gets.
        groups: Number of groups. Default: 1.
    """
    channels = like.size(0)
    return torch.eye(channels // groups, dtype=like.dtype, device=like.device).repeat(groups, 1)[..., None, None]


def conv_to_fc(kernel: Tensor, h: int, w: int, groups: int | None = None) -> Tensor:
    """Write a grouped convolution with "same" zero padding as fully connected layers, one for each group (paper
    section 3.3).

    The columns of a matrix are the outputs of the convolution for the identity, one pixel of one channel at a time.

    Args:
        kernel: Shape (O, I / groups, k, k) with odd k.
        h: Height of the tile that the convolution runs on, in pixels.
        w: Width of the tile, in pixels.
        groups: Number of groups. Default: O, a depth-wise convolution.

    Returns:
        Shape (groups, O / groups * h * w, I / groups * h * w), output before input, channel before pixel, float64.
    """
    outputs, inputs, side, _ = kernel.shape
    groups = outputs if groups is None else groups
    kernels = to_float64(kernel).view(outputs * inputs, 1, side, side)
    pixels = torch.eye(h * w, dtype=torch.float64, device=kernels.device).view(h * w, 1, h, w)
    # Each pair of channels separately, so that the identity has one channel.
    response = F.conv2d(pixels.expand(-1, len(kernels), -1, -1), kernels, padding=side // 2, groups=len(kernels))
    matrices = response.view(h * w, outputs, inputs, h * w).permute(1, 3, 2, 0)
    return matrices.reshape(groups, outputs // groups * h * w, inputs * h * w)
