# SPDX-License-Identifier: Apache-2.0
import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.reparam import scale_and_shift, set_weight_and_bias

from .tracing import multiply_add


def build_batch_norm(norm_cfg: dict, channels: int, fusible: bool = False) -> _BatchNorm:
    """Build the batch norm that a config names.

    Args:
        norm_cfg: Config of a batch norm: BN, SyncBN or another subclass of torch's.
        channels: Number of channels.
        fusible: Whether a plain BN is to offer timm's ``fuse``, for want of a neighbour that absorbs it.

    Raises:
        ValueError: ``norm_cfg`` names no norm, or another kind of norm, which no convolution can absorb.
    """
    try:
        if fusible and norm_cfg["type"] in ("BN", "BN2d"):
            norm_cfg = {**norm_cfg, "type": FusibleBatchNorm2d}
        norm = build_norm_layer(norm_cfg, channels)[1]
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        unknown = isinstance(error, KeyError) and "type" in norm_cfg  # of which mmcv says "Cannot find None"
        reason = "its type is unknown" if unknown else str(error).strip("'\"").partition(". ")[0]
        reason = reason or "an argument is missing"  # of which mmcv asserts that it is there, without a word
        raise ValueError(
            f"norm_cfg={norm_cfg} builds no norm: {reason}. Expected e.g. dict(type='BN') or dict(type='SyncBN')."
        ) from error
    if not isinstance(norm, _BatchNorm):
        raise ValueError(
            f"norm_cfg={norm_cfg} builds a {type(norm).__name__}. Norms are folded into weights, which "
            "only a batch norm allows: use dict(type='BN') or dict(type='SyncBN')."
        )
    return norm


class ScaleShift(nn.Module):
    """What remains of a batch norm that no neighbour can absorb: ``x * weight + bias``, channel by channel.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    @classmethod
    def from_batch_norm(cls, bn: _BatchNorm) -> "ScaleShift":
        """Freeze the statistics of ``bn`` into a scale and a shift of the same device and dtype."""
        module = cls(bn.num_features).to(bn.running_mean)
        module.weight.requires_grad = bn.weight is None or bn.weight.requires_grad
        module.bias.requires_grad = bn.bias is None or bn.bias.requires_grad
        set_weight_and_bias(module, *scale_and_shift(bn))
        return module.train(bn.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return multiply_add(x, self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1))

    def extra_repr(self) -> str:
        return str(self.weight.numel())


class FusibleBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with no neighbour to absorb it; walks that know timm's protocol replace it by what it fuses to."""

    def fuse(self) -> ScaleShift:
        """The deploy form of this norm."""
        return ScaleShift.from_batch_norm(self)
