# SPDX-License-Identifier: Apache-2.0
"""Let torch's safe unpickler read what MMEngine writes, and nothing that runs code."""

import pickle

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

HISTORY_STATISTICS = ("min", "max", "current", "mean")


def history_statistic(owner: type, name: str) -> object:
    """Stand in for ``getattr`` while unpickling: give out the statistics of a HistoryBuffer and nothing else.

    Raises:
        pickle.UnpicklingError: Anything else is asked for.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is refused: it may run code.")


def trust_mmengine() -> None:
    """Allow-list the types in MMEngine's own checkpoints: the message hub's histories and their numpy arrays.

    torch >= 2.6 loads with ``weights_only=True`` unless told otherwise and refuses them without this.
    """
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (history_statistic, "builtins.getattr"),
            np.ndarray,
            np.dtype,
            *dtypes,
            # numpy 2 moved its private modules; files know either name.
            *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
            *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        ]
    )
