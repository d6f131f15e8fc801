# SPDX-License-Identifier: Apache-2.0
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import clip_grad_norm_

from mmrepmlp.models import RepMLPNetUnit
from mmrepmlp.registry import FUNCTIONS, STRATEGIES

from .data_parallel import without_sync_batch_norm


@FUNCTIONS.register_module()
def shard_units(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` for RepMLPNet: each unit is wrapped as a whole.

    Smaller modules cannot be wrapped: a unit accesses submodules of its children directly, which bypasses FSDP's hooks.

    Args:
        module: The module that FSDP asks about.
        recurse: Whether FSDP asks if to visit the module's children, instead of if to wrap the module itself.
        nonwrapped_numel: Number of parameters outside of wrapped children.
    """
    return recurse or isinstance(module, RepMLPNetUnit)


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """MMEngine's FSDP strategy with full checkpoints, for current versions of torch, with or without a GPU.

    Differences from its base class: it clips by the norm of the whole gradient, not of each process's shard; it can
    resume, where MMEngine passes arguments in an order that torch no longer supports; it saves what an optimizer
    wrapper adds to the optimizer's state, such as a loss scale.

    Args:
        model_wrapper: Settings of :class:`mmengine.model.MMFullyShardedDataParallel`. Default: None.
        **settings: Further arguments of :class:`mmengine._strategy.FSDPStrategy`.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **settings) -> None:
        self.on_cpu = get_device() == "cpu"
        if self.on_cpu:
            model_wrapper = {"device_id": "cpu", **(model_wrapper or {})}
        state_dict_cfg = dict(
            state_dict_type="FULL_STATE_DICT",
            # In every process, because a RepMLPNet compares a state dict with its own when it loads.
            state_dict_config=dict(type="FullStateDictConfig", offload_to_cpu=True, rank0_only=False),
            # torch gathers optimizer states in one buffer, and offloading copies only from a GPU's.
            optim_state_dict_config=dict(
                type="FullOptimStateDictConfig", offload_to_cpu=not self.on_cpu, rank0_only=True
            ),
        )
        super().__init__(model_wrapper=model_wrapper, state_dict_cfg=state_dict_cfg, **settings)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; without a GPU its SyncBN layers become BN layers."""
        model = super().build_model(model)
        return without_sync_batch_norm(model) if self.on_cpu else model

    def build_optim_wrapper(self, optim_wrapper: BaseOptimWrapper | dict, model: nn.Module) -> BaseOptimWrapper:
        """Build an optimizer wrapper for the sharded model.

        Raises:
            ValueError: The config sets ``flat_decay_mult``, which depends on the number of dimensions of parameters.
        """
        if (
            isinstance(optim_wrapper, dict)
            and (optim_wrapper.get("paramwise_cfg") or {}).get("flat_decay_mult") is not None
        ):
            raise ValueError(
                "optim_wrapper.paramwise_cfg.flat_decay_mult applies to parameters of one dimension, and under FSDP "
                "all are. Set it to None; norm_decay_mult and bias_decay_mult depend on layer and name instead."
            )
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(wrapper, "clip_func", None) is clip_grad_norm_:
            wrapper.clip_func = lambda parameters, **settings: model.clip_grad_norm_(**settings)
        return wrapper

    def optim_state_dict(self) -> dict:
        """The full state of optimizer and wrapper in process 0."""
        return {
            **FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer),
            **added_by_wrapper(self.optim_wrapper.state_dict()),
        }

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the full state of optimizer and wrapper.

        Args:
            state_dict: The result of :meth:`optim_state_dict`.

        Raises:
            ValueError: The state was saved by a run without FSDP.
        """
        if any(isinstance(name, int) for name in state_dict["state"]):
            raise ValueError(
                "This checkpoint was saved without FSDP: its optimizer state is indexed by parameter order, and FSDP "
                "needs parameter names. Resume it with the config that saved it, or start from its weights: "
                "--cfg-options load_from=CHECKPOINT in place of --resume."
            )
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict({**sharded, **added_by_wrapper(state_dict)})


def added_by_wrapper(state_dict: dict) -> dict:
    """The entries of an optimizer wrapper's state that are not the optimizer's."""
    return {name: value for name, value in state_dict.items() if name not in ("state", "param_groups")}
