# SPDX-License-Identifier: Apache-2.0
"""All global side effects of importing mmrepmlp: :data:`EFFECTS`, each with a reason."""

import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from .checkpoint import LOADERS
from .checkpoint.plain_data import HISTORY_STATISTICS


class Effect(NamedTuple):
    """A change outside of the package.

    Attributes:
        changes: What changes.
        reason: What would go wrong without it.
        apply: Makes the change; idempotent.
    """

    changes: str
    reason: str
    apply: Callable[[], None]


def history_statistic(owner: type, name: str) -> object:
    """Replacement of ``getattr`` in unpickling: returns the statistics of a HistoryBuffer and nothing else.

    Raises:
        pickle.UnpicklingError: Another attribute is requested.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is refused: it may run code.")


def read_checkpoints_safely() -> None:
    for pattern, loader in LOADERS.items():
        registered = CheckpointLoader._schemes.get(pattern)
        if registered is None or registered.__module__ == CheckpointLoader.__module__:  # not somebody's own
            CheckpointLoader.register_scheme(pattern, loader, force=True)


def trust_plain_data() -> None:
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *dtypes,
            # numpy 2 moved its private modules; files refer to either name.
            *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
            *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        ]
    )


def replace_getattr() -> None:
    torch.serialization.add_safe_globals([(history_statistic, "builtins.getattr")])


def name_package() -> None:
    MODULE2PACKAGE.setdefault("mmrepmlp", "mmrepmlp.registry")


EFFECTS = [
    Effect(
        "MMEngine's loaders of checkpoints: local, http(s), torchvision://, open-mmlab://, mmcls://, s3://, pavi://",
        "They execute code that a file may contain: by default on torch < 2.6, with onedl-mmengine once the safe way "
        "fails. With ours, load_from, --resume and init_cfg=dict(type='Pretrained') behave alike, damaged files are "
        "explained, and safetensors are read.",
        read_checkpoints_safely,
    ),
    Effect(
        "torch's list of types that are safe to load",
        "torch >= 2.6 refuses MMEngine's own checkpoints: they contain HistoryBuffers and numpy arrays.",
        trust_plain_data,
    ),
    Effect(
        "What torch's safe unpickler uses as builtins.getattr",
        "A HistoryBuffer is pickled with references to its methods by getattr, and unrestricted getattr is unsafe.",
        replace_getattr,
    ),
    Effect(
        "mmengine.config.utils.MODULE2PACKAGE",
        "MMEngine locates the package of mmrepmlp:: in a config by the name of its distribution, which fails for an "
        "editable install; the name of a module works for any.",
        name_package,
    ),
]


def install() -> None:
    """Apply all :data:`EFFECTS`. Importing mmrepmlp calls it once; calling it again changes nothing."""
    for effect in EFFECTS:
        effect.apply()
