# SPDX-License-Identifier: Apache-2.0
"""A batch norm that uses a whole GPU where there are few channels."""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from mmrepmlp.registry import MODELS

from .common import is_tracing

# From this many channels on, torch's own norm keeps most of a GPU busy, and passes over the memory fewer times.
MANY_CHANNELS = 64


@MODELS.register_module()
class ParallelBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, computed in training by reductions over a whole tensor.

    On a GPU, torch gives each channel of a batch norm one block of threads. The norms of RepMLPNet's first stages have
    one and four channels with millions of elements each, and leave nearly all of the card idle. Here, statistics are
    ``torch.var_mean`` in float32 or better, and the backward pass follows its formula. Parameters, statistics, state
    dict and outputs are those of ``nn.BatchNorm2d``, up to rounding. In eval mode, for compilers and tracers, and with
    64 channels or more, it is that class.

    In a config, ``norm_cfg=dict(type="mmrepmlp.ParallelBatchNorm2d")``.

    Raises:
        RuntimeError: Something asks for second derivatives.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training or is_tracing() or (x.dim() == 4 and x.size(1) >= MANY_CHANNELS):
            return super().forward(x)
        self._check_input_dim(x)
        count = x.numel() // x.size(1)
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        out, mean, variance = NormalizeBatch.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean), factor)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), factor)
        return out


class NormalizeBatch(torch.autograd.Function):
    """Normalize (N, C, H, W) by its own statistics; also returns these, mean and biased variance, (C)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), (0, 2, 3), correction=0)
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        out = torch.addcmul(per_channel(shift), x, per_channel(scale), out=torch.empty_like(x))
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        centered = x - per_channel(mean)
        grad_bias = grad.sum((0, 2, 3), dtype=mean.dtype)
        grad_weight = (grad * centered).sum((0, 2, 3)) * inverse
        grad_x = None
        if ctx.needs_input_grad[0]:
            count = x.numel() // x.size(1)
            scale = inverse if weight is None else inverse * weight
            offset = per_channel(-scale * grad_bias / count)
            slope = per_channel(-scale * inverse * grad_weight / count)
            grad_x = torch.addcmul(offset, centered, slope, out=centered)
            grad_x = torch.addcmul(grad_x, grad, per_channel(scale), out=torch.empty_like(x))
        affine = weight is not None
        return (
            grad_x,
            grad_weight.to(weight.dtype) if affine else None,
            grad_bias.to(weight.dtype) if affine else None,
            None,
        )


def per_channel(values: Tensor) -> Tensor:
    """A value for each channel, (C), in the shape (C, 1, 1)."""
    return values[:, None, None]
