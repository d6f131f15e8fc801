# SPDX-License-Identifier: Apache-2.0
"""Structural re-parameterization as plain tensor algebra.

Every function returns float64, so that chained folds round once, when the caller casts the result to the dtype of the
parameters it replaces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def scale_and_shift(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Write a batch norm in eval mode as ``x * scale + shift``.

    Args:
        bn: A batch norm over C channels that tracks running statistics.

    Returns:
        ``scale`` and ``shift``, each of shape (C,), float64.

    Raises:
        ValueError: ``bn`` tracks no running statistics, so that its output depends on the batch.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            f"{bn} has track_running_stats=False: its output depends on the batch and cannot be folded. "
            "Use a norm_cfg with running statistics."
        )
    scale = torch.rsqrt(bn.running_var.double() + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -bn.running_mean.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    return scale, shift


def fold_after(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a scale-and-shift that follows a convolution or linear layer into it.

    Args:
        weight: Shape (O, ...).
        bias: Shape (O,), or None for zero.
        scale: Shape (O,).
        shift: Shape (O,).

    Returns:
        The weight and bias of the one layer that does both, float64.
    """
    folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded, shift if bias is None else bias.double() * scale + shift


def fold_before(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a scale-and-shift that precedes a pointwise convolution or linear layer into it.

    Args:
        weight: Shape (O, I) or (O, I, 1, 1). Larger kernels cannot absorb a shift where they see padding.
        bias: Shape (O,), or None for zero.
        scale: Shape (I,).
        shift: Shape (I,).

    Returns:
        The weight and bias of the one layer that does both, float64.
    """
    matrix = weight.double().flatten(1)
    folded_bias = matrix @ shift if bias is None else matrix @ shift + bias.double()
    return (matrix * scale).view_as(weight), folded_bias


def conv_to_fc(kernel: Tensor, h: int, w: int, groups: int | None = None) -> Tensor:
    """Write a grouped convolution with "same" zero padding as fully connected layers, one for each group (paper
    section 3.3).

    The columns of a matrix are what the convolution makes of the identity, one pixel of one channel at a time.

    Args:
        kernel: Shape (O, I / groups, k, k) with odd k.
        h: Height of the tile the convolution runs on, in pixels.
        w: Width of the tile, in pixels.
        groups: Number of groups. Default: O, a depth-wise convolution.

    Returns:
        Shape (groups, O / groups * h * w, I / groups * h * w), output before input, channel before pixel, float64.
    """
    outputs, inputs, side, _ = kernel.shape
    groups = outputs if groups is None else groups
    kernels = kernel.double().view(outputs * inputs, 1, side, side)
    pixels = torch.eye(h * w, dtype=torch.float64, device=kernel.device).view(h * w, 1, h, w)
    # Each pair of channels for itself, so that the identity has one channel.
    response = F.conv2d(pixels.expand(-1, len(kernels), -1, -1), kernels, padding=side // 2, groups=len(kernels))
    matrices = response.view(h * w, outputs, inputs, h * w).permute(1, 3, 2, 0)
    return matrices.reshape(groups, outputs // groups * h * w, inputs * h * w)
