# SPDX-License-Identifier: Apache-2.0
"""Registries of the scope ``mmrepmlp``, children of MMEngine's.

``type='mmrepmlp.RepMLPNet'`` resolves from every OpenMMLab registry: MMEngine imports this module when it meets the
scope for the first time.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="mmrepmlp", locations=["mmrepmlp.models"])
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mmrepmlp", locations=["mmrepmlp.engine"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mmrepmlp",
    locations=["mmrepmlp.engine"],
)
