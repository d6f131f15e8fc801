# SPDX-License-Identifier: Apache-2.0
from torch import Tensor, nn

from mmrepmlp.reparam import Reparameterizable

from .conv import ConvBN


class ConvFFN(nn.Module, Reparameterizable):
    """Feed-forward network of two pointwise convolutions (paper section 3.5).

    Args:
        channels: Number of input and output channels.
        expansion: Width of the hidden layer as a multiple of ``channels``.
        norm_cfg: Config of the batch norms.
        deploy: Whether to build the deploy form.
    """

    def __init__(self, channels: int, expansion: int, norm_cfg: dict, deploy: bool = False) -> None:
        super().__init__()
        self.expansion = expansion
        self.ffn_fc1 = ConvBN(channels, channels * expansion, 1, norm_cfg, relu=False, deploy=deploy)
        self.act = nn.GELU()
        self.ffn_fc2 = ConvBN(channels * expansion, channels, 1, norm_cfg, relu=False, deploy=deploy)

    @property
    def deploy(self) -> bool:
        return self.ffn_fc1.deploy and self.ffn_fc2.deploy

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return self.ffn_fc2(self.act(self.ffn_fc1(x)))

    def switch_to_deploy(self) -> None:
        """Fold both batch norms into their convolutions, in place."""
        self.ffn_fc1.switch_to_deploy()
        self.ffn_fc2.switch_to_deploy()
