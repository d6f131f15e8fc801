# SPDX-License-Identifier: Apache-2.0
"""Everything that importing mmrepmlp changes outside of itself: :data:`EFFECTS`, with a reason each."""

import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from .checkpoint import load_from_local, load_from_url

HISTORY_STATISTICS = ("min", "max", "current", "mean")


class Effect(NamedTuple):
    """A change outside of the package.

    Attributes:
        changes: What changes.
        reason: What would be wrong without it.
        apply: Make the change; harmless to call twice.
    """

    changes: str
    reason: str
    apply: Callable[[], None]


def history_statistic(owner: type, name: str) -> object:
    """Stand in for ``getattr`` while unpickling: give out the statistics of a HistoryBuffer and nothing else.

    Raises:
        pickle.UnpicklingError: Anything else is asked for.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is refused: it may run code.")


def read_files_safely() -> None:
    CheckpointLoader.register_scheme("", load_from_local, force=True)


def read_addresses_safely() -> None:
    CheckpointLoader.register_scheme(("http://", "https://"), load_from_url, force=True)


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
            # numpy 2 moved its private modules; files know either name.
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
        "MMEngine's loader of local checkpoints",
        "It runs code that a file may hold where torch < 2.6 does, and has no sentence for a damaged file. With ours, "
        "load_from, --resume and init_cfg=dict(type='Pretrained') behave alike, and read safetensors as well.",
        read_files_safely,
    ),
    Effect(
        "MMEngine's loader of http:// and https:// checkpoints",
        "It unpickles what it downloads with weights_only=False where torch does, and so runs code of strangers.",
        read_addresses_safely,
    ),
    Effect(
        "torch's list of types that are safe to load",
        "torch >= 2.6 refuses MMEngine's own checkpoints: they hold HistoryBuffers and numpy arrays.",
        trust_plain_data,
    ),
    Effect(
        "What torch's safe unpickler takes for builtins.getattr",
        "A HistoryBuffer is pickled with references to its methods by getattr, which cannot be trusted as it is.",
        replace_getattr,
    ),
    Effect(
        "mmengine.config.utils.MODULE2PACKAGE",
        "MMEngine finds the package of mmrepmlp:: in a config by the name of its distribution, which leads nowhere in "
        "an editable install; the name of a module leads to its folder in any.",
        name_package,
    ),
]


def install() -> None:
    """Apply all :data:`EFFECTS`. Importing mmrepmlp calls it once; calling it again changes nothing."""
    for effect in EFFECTS:
        effect.apply()
