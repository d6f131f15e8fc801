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

    The weights of a :class:`~mmrepmlp.models.RepOptVGG`, or of a :class:`~mmrepmlp.models.RepMLPNet` with
    ``gradient_reparam=True``, are updated as if the branches that they stand for were trained. Other settings are
    MMEngine's: ``norm_decay_mult``, ``custom_keys`` and so on.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper, with an optimizer of type SGD or AdamW and no ``clip_grad``.
        paramwise_cfg: MMEngine's settings, and ``scales``: for a :class:`~mmrepmlp.models.RepOptVGG`, the checkpoint of
            a hyper-search, or a file that only has the scales. They also initialize an untrained network.

    Raises:
        ValueError: The optimizer is neither SGD nor AdamW, ``clip_grad`` is set, the model has nothing to
            re-parameterize, or ``scales`` belong to another network.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        self.scales = paramwise_cfg.pop("scales", None)
        paramwise_cfg.setdefault("bypass_duplicate", False)  # MMEngine makes groups only if there is a setting
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.optim_wrapper_cfg.get("clip_grad"):
            raise ValueError(
                f"clip_grad={self.optim_wrapper_cfg['clip_grad']}: clipping depends on the norm of the gradients of "
                "all branches, which do not exist here. Leave clip_grad out."
            )
        kind = self.optimizer_cfg["type"]
        name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
        if name not in OPTIMIZERS:
            raise ValueError(
                f"optimizer type={name}: expected {' or '.join(OPTIMIZERS)}, whose steps can be split among branches."
            )
        self.weights: list[ReparameterizedWeight] = []
        self.optimizer_cfg = {**self.optimizer_cfg, "type": OPTIMIZERS[name], "weights": self.weights}

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper for a model."""
        network = getattr(model, "module", model)
        if self.scales is not None:
            load_scales(self.scales, network)
        self.additions = find_additions(network)
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs) -> None:
        """Add a parameter group for each parameter of ``module``."""
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
    """Return the sums that weights of a model stand for, by name."""
    found = {}
    for path, module in model.named_modules():
        additions = module.linear_additions() if hasattr(module, "linear_additions") else {}
        found.update({f"{path}.{name}".lstrip("."): addition for name, addition in additions.items()})
    if not found:
        raise ValueError(
            f"{type(model).__name__} has nothing to re-parameterize. Set gradient_reparam=True for a RepMLPNet, or "
            "paramwise_cfg=dict(scales='...') for a RepOptVGG, with the scales of its hyper-search."
        )
    if missing := found.keys() - dict(model.named_parameters()).keys():
        raise ValueError(
            f"{sorted(missing)[0]} is not a parameter of the wrapped model. Only whole gradients can be "
            "re-parameterized: train with MMDistributedDataParallel instead of sharded weights."
        )
    return found


def load_scales(scales: object, model: nn.Module) -> None:
    """Load scales into the networks of a model that take them."""
    takers = [module for module in model.modules() if hasattr(module, "load_scales")]
    if not takers:
        raise ValueError(
            f"paramwise_cfg has scales={scales!r}, but {type(model).__name__} has no RepOptVGG to take them."
        )
    for network in takers:
        network.load_scales(scales)
