# SPDX-License-Identifier: Apache-2.0
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreezableStages:
    """Mixin for backbones with the arguments ``frozen_stages`` and ``norm_eval``, which are attributes as well.

    A subclass implements :meth:`first_parts`.
    """

    frozen_stages: int
    norm_eval: bool

    def first_parts(self, stages: int) -> list[nn.Module]:
        """The stem, the first ``stages`` stages and what lies between them."""
        raise NotImplementedError

    def check_frozen_stages(self, stages: int) -> None:
        """Check ``frozen_stages`` against the number of stages.

        Raises:
            ValueError: It is out of range.
        """
        if not -1 <= self.frozen_stages <= stages:
            raise ValueError(f"frozen_stages={self.frozen_stages}: expected an int from -1 to {stages}.")

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode; frozen stages stay in eval mode, and so do all batch norms with ``norm_eval``."""
        super().train(mode)
        self.freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def freeze_stages(self) -> None:
        """Put frozen stages into eval mode, without gradients."""
        if self.frozen_stages < 0:
            return
        for part in self.first_parts(self.frozen_stages):
            part.eval()
            part.requires_grad_(False)
