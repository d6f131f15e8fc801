# SPDX-License-Identifier: Apache-2.0
"""Registries of the scope ``mmrepmlp``, children of MMEngine's.

``type='mmrepmlp.RepMLPNet'`` resolves from every OpenMMLab registry: MMEngine imports this module when it first sees
the scope. Importing it applies the side effects that :mod:`mmengine_compat` lists.
"""

from .frameworks import check_frameworks

check_frameworks()  # before the imports below need them

from mmengine.registry import Registry, root  # noqa: E402

from . import mmengine_compat  # noqa: E402

mmengine_compat.install()


def child(name: str, *locations: str) -> Registry:
    """Create a child of one of MMEngine's registries.

    Args:
        name: Name of the parent in ``mmengine.registry``.
        locations: Modules to import before the first look-up. Default: ``mmrepmlp.engine``.
    """
    parent = getattr(root, name)
    return Registry(parent.name, parent=parent, scope="mmrepmlp", locations=list(locations) or ["mmrepmlp.engine"])


MODELS = child("MODELS", "mmrepmlp.models", "mmrepmlp.quantization", "mmrepmlp.compression")
HOOKS = child("HOOKS", "mmrepmlp.engine", "mmrepmlp.compression")
OPTIM_WRAPPER_CONSTRUCTORS = child("OPTIM_WRAPPER_CONSTRUCTORS")
MODEL_WRAPPERS = child("MODEL_WRAPPERS")

# Configs inherited as mmrepmlp::... are built in this scope: each kind of object needs a registry here, or MMEngine
# warns when it falls back to its own.
INHERITED = [
    child(name)
    for name in (
        "DATASETS",
        "DATA_SAMPLERS",
        "EVALUATOR",
        "FUNCTIONS",
        "LOG_PROCESSORS",
        "LOOPS",
        "METRICS",
        "OPTIMIZERS",
        "OPTIM_WRAPPERS",
        "PARAM_SCHEDULERS",
        "RUNNERS",
        "STRATEGIES",
        "TASK_UTILS",
        "TRANSFORMS",
        "VISBACKENDS",
        "VISUALIZERS",
        "WEIGHT_INITIALIZERS",
    )
]
