# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class StagedBackbone:
    """Mixin for backbones of a stem and stages of blocks: what freezing and layer-wise learning rates have in common.

    A subclass has the attributes ``frozen_stages`` and ``norm_eval``, as its arguments of these names are, and
    ``stages``, those that are built; it implements :meth:`layers`.
    """

    frozen_stages: int
    norm_eval: bool
    stages: Sequence[Sequence[nn.Module]]

    def layers(self) -> list[list[nn.Module]]:
        """The modules of each layer: of the stem, then of each block, with what lies in front of it."""
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
        frozen = 1 + sum(len(stage) for stage in self.stages[: self.frozen_stages])
        for layer in self.layers()[:frozen]:
            for module in layer:
                module.eval()
                module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Tell how deep a parameter sits, for layer-wise learning rate decay.

        The stem is layer 0, every block is a layer, what lies in front of a block belongs to it, and what follows the
        stages is the last layer.

        Args:
            param_name: Name of the parameter.
            prefix: Name of this backbone in the whole model, e.g. ``"backbone."``.

        Returns:
            The parameter's layer, from 0, and the number of layers.
        """
        layers, paths = self.layers(), {module: path for path, module in self.named_modules()}
        if param_name.startswith(prefix):
            name = param_name[len(prefix) :]
            for depth, layer in enumerate(layers):
                if any(name.startswith(f"{paths[module]}.") for module in layer):
                    return depth, len(layers) + 1
        return len(layers), len(layers) + 1
