# SPDX-License-Identifier: Apache-2.0
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from mmrepmlp.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmrepmlp.reparam import LinearAddition

from .reparameterized import ReparameterizedAdamW, ReparameterizedSGD, ReparameterizedWeight

OPTIMIZERS = {"SGD": ReparameterizedSGD, "AdamW": ReparameterizedAdamW}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class RepOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Gradient re-parameterization: train a network in the structure of its deploy form (RepOptimizer, ICLR 2023).

    The weights of :class:`RepOptVGG`, or of a :class:`RepMLPNet` with ``gradient_reparam=True``, move as if the
    branches that they stand for were there. All else is MMEngine's: ``norm_decay_mult``, ``custom_keys`` and so on.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper, with an optimizer of type SGD or AdamW and no ``clip_grad``.
        paramwise_cfg: MMEngine's settings, and ``scales``: for a :class:`RepOptVGG`, the checkpoint of a hyper-search,
            or a file of the scales alone. An untrained network is initialized from them as well.

    Raises:
        ValueError: The optimizer is another one, gradients are to be clipped, the model has nothing to re-parameterize,
            or ``scales`` belong to another network.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        self.scales = paramwise_cfg.pop("scales", None)
        paramwise_cfg.setdefault("bypass_duplicate", False)  # MMEngine makes groups only if there is a setting
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.optim_wrapper_cfg.get("clip_grad"):
            raise ValueError(
                f"clip_grad={self.optim_wrapper_cfg['clip_grad']}: clipping depends on the norm of the gradients of "
                "all branches, which are not there. Leave clip_grad out."
            )
        kind = self.optimizer_cfg["type"]
        name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
        if name not in OPTIMIZERS:
            raise ValueError(
                f"optimizer type={name}: expected {' or '.join(OPTIMIZERS)}, whose steps can be taken apart."
            )
        self.weights: list[ReparameterizedWeight] = []
        self.optimizer_cfg = {**self.optimizer_cfg, "type": OPTIMIZERS[name], "weights": self.weights}

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper of a model."""
        network = getattr(model, "module", model)
        if self.scales is not None:
            hand_over(self.scales, network)
        self.additions = find_additions(network)
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs) -> None:
        """Make a parameter group for each parameter below ``module``."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return
        groups = {group["params"][0]: index for index, group in enumerate(params)}
        parameters = dict(module.named_parameters())
        self.weights[:] = [
            ReparameterizedWeight(name, groups[parameters[name]], addition)
            for name, addition in self.additions.items()
            if parameters[name].requires_grad
        ]


def find_additions(model: nn.Module) -> dict[str, LinearAddition]:
    """The sums that weights of a model stand for, by their names."""
    found = {}
    for path, module in model.named_modules():
        own = module.linear_additions() if hasattr(module, "linear_additions") else {}
        found.update({f"{path}.{name}".lstrip("."): addition for name, addition in own.items()})
    if not found:
        raise ValueError(
            f"{type(model).__name__} has nothing to re-parameterize: give a RepMLPNet gradient_reparam=True, or a "
            "RepOptVGG the scales of its hyper-search, paramwise_cfg=dict(scales='...')."
        )
    if missing := found.keys() - dict(model.named_parameters()).keys():
        raise ValueError(
            f"{sorted(missing)[0]} is no parameter of the wrapped model. Gradients are re-parameterized whole: train "
            "with MMDistributedDataParallel instead of sharded weights."
        )
    return found


def hand_over(scales: object, model: nn.Module) -> None:
    """Give scales to the networks of a model that take them."""
    takers = [module for module in model.modules() if hasattr(module, "load_scales")]
    if not takers:
        raise ValueError(
            f"paramwise_cfg has scales={scales!r}, and {type(model).__name__} has no RepOptVGG to take them."
        )
    for network in takers:
        network.load_scales(scales)
