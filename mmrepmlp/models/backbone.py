# SPDX-License-Identifier: Apache-2.0
"""The base class of backbones with a stem and stages of blocks, and checks of arguments."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.checkpoint.adapt import Origin, adapt_state_dict
from mmrepmlp.reparam import Reparameterizable


class StagedBackbone(Reparameterizable, BaseModule):
    """Base class of backbones: frozen stages, layer-wise learning rates, and loading of weights of any origin.

    A subclass sets ``stages``, the stages that are built. It names its stem ``stage0`` and its stages ``stage1`` and so
    on, or overrides :attr:`unbuilt` and :meth:`layers`.

    Args:
        num_stages: Number of stages of the architecture.
        out_indices: Stages whose feature maps are returned; negative numbers count from the end. Stages after the last
            of these are not built.
        frozen_stages: Stages to freeze: -1 for none, 0 for the stem, k for the stem and the first k stages.
        norm_eval: Whether batch norms stay in eval mode during training.
        deploy: Whether to build the deploy form.
        init_cfg: Initialization config.

    Raises:
        ValueError: An argument is out of range.
    """

    origin: Origin
    stages: Sequence[nn.Module]

    def __init__(
        self,
        num_stages: int,
        out_indices: int | Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        deploy: bool,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(deploy=deploy, init_cfg=init_cfg)
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f"frozen_stages={frozen_stages}: expected an int from -1 to {num_stages}.")
        self.num_stages, self.out_indices = num_stages, resolve_indices(out_indices, num_stages)
        self.num_built = self.out_indices[-1] + 1
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """Prefixes of the names of modules that are not built."""
        return tuple(f"stage{i + 1}." for i in range(self.num_built, self.num_stages))

    def layers(self) -> list[list[nn.Module]]:
        """Return the modules of each layer: those of the stem, then those of each block and of what precedes it."""
        return [[self.stage0], *([block] for stage in self.stages for block in stage)]

    def run_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the stages one after the other, and return the feature maps of those in ``out_indices``."""
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

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
        """Return the depth of a parameter, for layer-wise learning rate decay.

        The stem is layer 0, each block with what precedes it is a layer, and what follows the stages is the last layer.

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

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        adapt_state_dict(self, state_dict, prefix, args[0], *args[-2:])
        super()._load_from_state_dict(state_dict, prefix, *args)


def resolve_indices(out_indices: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """Check and normalize the indices of the stages to return; negative ones count from the end."""
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices or any(not isinstance(i, int) or not -stages <= i < stages for i in indices):
        raise ValueError(f"out_indices={out_indices!r}: expected ints from {-stages} to {stages - 1}.")
    sorted_indices = tuple(sorted({i % stages for i in indices}))
    if len(sorted_indices) < len(indices):
        raise ValueError(f"out_indices={out_indices!r} names a stage twice.")
    return sorted_indices


def to_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Convert an int or a pair of ints to (height, width) in pixels."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ValueError(f"{name}={value!r}: expected a positive int or a pair (height, width) of positive ints.")
    return pair


def check_positive(**arguments: int) -> None:
    """Check arguments that are positive ints."""
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive int.")


def check_per_stage(number: int, **arguments: Sequence[int]) -> None:
    """Check arguments that list a positive int for each stage."""
    for name, value in arguments.items():
        ints = isinstance(value, Sequence) and all(isinstance(v, int) and v > 0 for v in value)
        if not ints or len(value) != number:
            raise ValueError(f"{name}={value!r}: expected {number} positive ints, one for each stage.")


def check_kernels(kernels: Sequence[int]) -> None:
    """Check the kernel sizes of local branches."""
    if any(not isinstance(k, int) or k < 1 or k % 2 == 0 for k in kernels) or len(set(kernels)) < len(kernels):
        raise ValueError(f"reparam_conv_kernels={kernels}: expected distinct, odd, positive ints, e.g. (1, 3).")
