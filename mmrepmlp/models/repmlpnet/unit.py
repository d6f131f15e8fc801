# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.reparam import Affine, Reparameterizable, affine, fuse_before

from ..common import ConvNorm, ScaleShift, build_batch_norm, recompute
from .block import RepMLPBlock
from .speed import run_in_slices


class RepMLPNetUnit(Reparameterizable, BaseModule):
    """A RepMLPBlock and a feed-forward network, each with a batch norm before it and a shortcut (paper section 3.5).

    In deploy form, ``norm2`` is fused into the first convolution of the feed-forward network. ``norm1`` cannot be fused
    into ``fc3``, whose weights serve many channels, and becomes a scale and shift.

    Args:
        channels: Number of input and output channels.
        drop_path_rate: Probability that a sample skips the block, and likewise the feed-forward network. Default: 0.
        ffn_expansion: Hidden width of the feed-forward network as a multiple of ``channels``. Default: 4.
        ffn_channels: That width, in place of the multiple. Default: None.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        with_cp: Whether to recompute activations in the backward pass to save memory. Default: False.
        deploy: Whether to build the deploy form. Default: False.
        **block: Further arguments of :class:`RepMLPBlock`.
    """

    def __init__(
        self,
        channels: int,
        *,
        drop_path_rate: float = 0.0,
        ffn_expansion: int = 4,
        ffn_channels: int | None = None,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        with_cp: bool = False,
        deploy: bool = False,
        **block,
    ) -> None:
        super().__init__(deploy=deploy)
        self.with_cp = with_cp
        # In mmpretrain's order, so that optimizer states, which depend on position, are interchangeable as well.
        self.repmlp_block = RepMLPBlock(channels, norm_cfg=norm_cfg, deploy=deploy, **block)
        hidden = channels * ffn_expansion if ffn_channels is None else ffn_channels
        self.ffn_block = ConvFFN(channels, hidden, norm_cfg, deploy)
        self.norm1 = ScaleShift(channels) if deploy else build_batch_norm(norm_cfg, channels)
        self.norm2 = nn.Identity() if deploy else build_batch_norm(norm_cfg, channels)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W), with any H and W."""
        return recompute(self, self.compute, x)

    def compute(self, x: Tensor) -> Tensor:
        """Run the forward pass, twice where activations are recomputed."""
        normed = self.norm1(x)
        gate_input = x if self.fused else normed
        x = self.repmlp_block(normed, gate_input, shortcut=x, drop_path=self.drop_path)
        hidden = self.ffn_block.ffn_fc1.conv.out_channels
        expansion = max(1, hidden // x.size(1))
        return run_in_slices(self.feed_forward, x, expansion, self.norm2, self.ffn_block, self.drop_path)

    def feed_forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Run the second half: map (N, C, H, W) to (N, C, H, W), each pixel separately."""
        return torch.add(x, self.drop_path(self.ffn_block(self.norm2(x))), out=out)

    def equivalents(self) -> dict[str, Affine]:
        """Return the layers of block and feed-forward network, with the norms before them fused, and ``norm1``."""
        layers, norm1, norm2 = super().equivalents(), affine(self.norm1), affine(self.norm2)
        if not self.fused:
            # The average of the global perceptron commutes with norm1.
            layers["repmlp_block.gp.conv1.conv"] = fuse_before(norm1, affine(self.repmlp_block.gp.conv1.conv))
            layers["ffn_block.ffn_fc1.conv"] = fuse_before(norm2, layers["ffn_block.ffn_fc1.conv"])
        return {**layers, "norm1": norm1}

    def vanishing(self) -> Iterable[str]:
        """Return the name of ``norm2``."""
        return ["norm2"]

    def deploy_layers(self) -> dict[str, nn.Module]:
        """Build ``norm1``, a scale and a shift."""
        return {"norm1": ScaleShift(self.norm1.num_features)}


class ConvFFN(Reparameterizable):
    """Feed-forward network of two pointwise convolutions, ``hidden`` channels wide between them (paper section 3.5)."""

    def __init__(self, channels: int, hidden: int, norm_cfg: dict, deploy: bool) -> None:
        super().__init__(deploy=deploy)
        self.ffn_fc1 = ConvNorm(nn.Conv2d(channels, hidden, 1, bias=deploy), norm_cfg, deploy=deploy)
        self.act = nn.GELU()
        self.ffn_fc2 = ConvNorm(nn.Conv2d(hidden, channels, 1, bias=deploy), norm_cfg, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return self.ffn_fc2(self.act(self.ffn_fc1(x)))
