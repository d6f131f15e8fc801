# SPDX-License-Identifier: Apache-2.0
"""Registries of the scope ``mmrepmlp``, children of MMEngine's.

``type='mmrepmlp.RepMLPNet'`` resolves from every OpenMMLab registry: MMEngine imports this module when it meets the
scope for the first time.
"""

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="mmrepmlp", locations=["mmrepmlp.models"])
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mmrepmlp", locations=["mmrepmlp.engine"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mmrepmlp",
    locations=["mmrepmlp.engine"],
)
MODEL_WRAPPERS = Registry(
    "model_wrapper", parent=MMENGINE_MODEL_WRAPPERS, scope="mmrepmlp", locations=["mmrepmlp.engine"]
)
FUNCTIONS = Registry("function", parent=MMENGINE_FUNCTIONS, scope="mmrepmlp", locations=["mmrepmlp.engine"])
STRATEGIES = Registry("strategy", parent=MMENGINE_STRATEGIES, scope="mmrepmlp", locations=["mmrepmlp.engine"])
