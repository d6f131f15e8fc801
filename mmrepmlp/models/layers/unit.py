# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.reparam import Reparameterizable

from .block import RepMLPBlock
from .ffn import ConvFFN
from .norm import ScaleShift, build_batch_norm
from .tracing import is_tracing

# Elements of the feed-forward network's hidden activation that one pass may hold without gradients: 6 MB in float32.
# Larger ones leave the cache, and cost more in page faults than in arithmetic.
HIDDEN_ELEMENTS = 3 * 2**19


class RepMLPNetUnit(BaseModule, Reparameterizable):
    """A RepMLPBlock and a feed-forward network, each behind a batch norm and beside a shortcut (paper section 3.5).

    In deploy form the norms are gone: ``norm2`` lives in the feed-forward network's first convolution; ``norm1``
    cannot move into ``fc3``, whose weights serve many channels, and stays as a scale and shift.

    Args:
        channels: Number of input and output channels.
        drop_path_rate: Probability that a sample skips the block, and likewise the feed-forward network. Default: 0.
        ffn_expansion: Width of the feed-forward network's hidden layer as a multiple of ``channels``. Default: 4.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        deploy: Whether to build the deploy form. Default: False.
        **block: Further arguments of :class:`RepMLPBlock`.
    """

    def __init__(
        self,
        channels: int,
        *,
        drop_path_rate: float = 0.0,
        ffn_expansion: int = 4,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        deploy: bool = False,
        **block,
    ) -> None:
        super().__init__()
        # In mmpretrain's order, so that optimizer states, which go by position, are interchangeable as well.
        self.repmlp_block = RepMLPBlock(channels, norm_cfg=norm_cfg, deploy=deploy, **block)
        self.ffn_block = ConvFFN(channels, ffn_expansion, norm_cfg, deploy)
        self.norm1 = ScaleShift(channels) if deploy else build_batch_norm(norm_cfg, channels)
        self.norm2 = nn.Identity() if deploy else build_batch_norm(norm_cfg, channels)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    @property
    def deploy(self) -> bool:
        return self.norms_are_folded and self.repmlp_block.deploy

    @property
    def norms_are_folded(self) -> bool:
        """Whether the norms in front of the block and the feed-forward network are gone."""
        return isinstance(self.norm1, ScaleShift)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W), with any H and W."""
        normed = self.norm1(x)
        gate = self.repmlp_block.gp(x if self.norms_are_folded else normed)
        local = self.repmlp_block.perceive_tiles(normed)
        if self.training or torch.is_grad_enabled() or is_tracing():
            # Dropping a sample's gate drops its path, and one pass gates and adds the shortcut.
            x = torch.addcmul(x, local, self.drop_path(gate))
            return x + self.drop_path(self.ffn_block(self.norm2(x)))
        # Without gradients memory is reused, and the hidden activation stays in the cache.
        x = torch.addcmul(x, local, gate, out=normed)
        for part in self.split(x):
            part += self.ffn_block(self.norm2(part))
        return x

    def split(self, x: Tensor) -> Iterator[Tensor]:
        """Views of a map whose hidden activations stay in the cache: some samples, or some rows of one."""
        samples = HIDDEN_ELEMENTS // (x.shape[1:].numel() * self.ffn_block.expansion)
        if samples:
            return iter(x.split(samples))
        rows = max(1, HIDDEN_ELEMENTS // (x.size(1) * x.size(3) * self.ffn_block.expansion))
        return (part for sample in x.split(1) for part in sample.split(rows, 2))

    def switch_to_deploy(self) -> None:
        """Inject locality into the block and fold every norm that has a neighbour to absorb it, in place."""
        self.repmlp_block.switch_to_deploy()
        if self.norms_are_folded:
            return
        self.repmlp_block.gp.absorb(self.norm1)
        self.norm1 = ScaleShift.from_batch_norm(self.norm1)
        self.ffn_block.switch_to_deploy()
        self.norm2 = self.ffn_block.absorb(self.norm2)
