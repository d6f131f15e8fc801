# SPDX-License-Identifier: Apache-2.0
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmrepmlp.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rate decay: lower learning rates for earlier layers of the backbone.

    It works for segmentors, detectors and classifiers. The learning rate of a parameter is multiplied by
    ``layer_decay_rate ** (n - 1 - layer)``, where the backbone's ``get_layer_depth`` returns ``layer`` and the number
    of layers ``n``. Parameters outside of the backbone keep the full rate. Other settings are MMEngine's:
    ``norm_decay_mult``, ``bias_decay_mult``, ``custom_keys``.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: MMEngine's settings, and ``layer_decay_rate``, above 0 and at most 1.

    Raises:
        ValueError: ``layer_decay_rate`` is missing or out of range, or the backbone has no ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate = paramwise_cfg.pop("layer_decay_rate", None)
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise ValueError(f"layer_decay_rate={self.rate!r} in paramwise_cfg: expected a number above 0, at most 1.")
        # MMEngine makes groups only if there is a setting.
        super().__init__(optim_wrapper_cfg, dict(bypass_duplicate=False) | paramwise_cfg)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs) -> None:
        """Add a parameter group for each parameter of ``module``."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return
        backbone = getattr(module, "backbone", None)
        if not hasattr(backbone, "get_layer_depth"):
            raise ValueError(
                f"{type(module).__name__} has no backbone with get_layer_depth, which layer_decay_rate needs. Use "
                "one of mmrepmlp's backbones or remove the constructor."
            )
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            layer, layers = backbone.get_layer_depth(names[group["params"][0]], "backbone.")
            group["lr"] = group.get("lr", self.base_lr) * self.rate ** (layers - 1 - layer)
