# SPDX-License-Identifier: Apache-2.0
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.reparam import Reparameterizable, scale_and_shift, set_weight_and_bias

from .block import RepMLPBlock
from .conv import Layer, with_preceding_norm
from .ffn import ConvFFN
from .inference import run_in_slices
from .norm import ScaleShift, build_batch_norm
from .recompute import recompute


class RepMLPNetUnit(BaseModule, Reparameterizable):
    """A RepMLPBlock and a feed-forward network, each behind a batch norm and beside a shortcut (paper section 3.5).

    In deploy form the norms are gone: ``norm2`` lives in the feed-forward network's first convolution; ``norm1``
    cannot move into ``fc3``, whose weights serve many channels, and stays as a scale and shift.

    Args:
        channels: Number of input and output channels.
        drop_path_rate: Probability that a sample skips the block, and likewise the feed-forward network. Default: 0.
        ffn_expansion: Width of the feed-forward network's hidden layer as a multiple of ``channels``. Default: 4.
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
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        with_cp: bool = False,
        deploy: bool = False,
        **block,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        # In mmpretrain's order, so that optimizer states, which depend on position, are interchangeable as well.
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
        if self.with_cp and self.training and torch.is_grad_enabled():
            return recompute(self, self.compute, x)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The forward pass, which may run twice."""
        normed = self.norm1(x)
        gate_input = x if self.norms_are_folded else normed
        x = self.repmlp_block(normed, gate_input, shortcut=x, drop_path=self.drop_path)
        return run_in_slices(self.feed_forward, x, self.ffn_block.expansion, self.norm2, self.ffn_block, self.drop_path)

    def feed_forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The second half: map (N, C, H, W) to (N, C, H, W), each pixel for itself."""
        return torch.add(x, self.drop_path(self.ffn_block(self.norm2(x))), out=out)

    def get_equivalent_layers(self) -> dict[str, Layer]:
        """Weight and bias of every layer of the deploy form, by name, as differentiable functions of this form's."""
        block, ffn = self.repmlp_block, self.ffn_block
        squeeze, excite = block.gp.conv1.conv, block.gp.conv2.conv
        layers = {
            "repmlp_block.fc3": block.get_equivalent_fc3(),
            "repmlp_block.gp.conv1.conv": (squeeze.weight, squeeze.bias),
            "repmlp_block.gp.conv2.conv": (excite.weight, excite.bias),
            "ffn_block.ffn_fc1.conv": with_preceding_norm(self.norm2, *ffn.ffn_fc1.get_equivalent_conv()),
            "ffn_block.ffn_fc2.conv": ffn.ffn_fc2.get_equivalent_conv(),
        }
        if self.norms_are_folded:
            return {**layers, "norm1": (self.norm1.weight, self.norm1.bias)}
        layers["repmlp_block.gp.conv1.conv"] = with_preceding_norm(self.norm1, squeeze.weight, squeeze.bias)
        return {**layers, "norm1": scale_and_shift(self.norm1)}

    def switch_to_deploy(self) -> None:
        """Inject locality into the block and fold every norm that has a neighbour to absorb it, in place."""
        self.repmlp_block.switch_to_deploy()
        if self.norms_are_folded:
            return
        self.repmlp_block.gp.absorb(self.norm1)
        self.norm1 = ScaleShift.from_batch_norm(self.norm1)
        # Both norms at once, so that the weight is rounded to its dtype once.
        first = self.ffn_block.ffn_fc1
        merged = with_preceding_norm(self.norm2, *first.get_equivalent_conv())
        set_weight_and_bias(first.conv, *merged, [first.bn, self.norm2])
        first.bn = nn.Identity().train(first.bn.training)
        self.ffn_block.switch_to_deploy()
        self.norm2 = nn.Identity().train(self.norm2.training)
