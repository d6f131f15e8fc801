# SPDX-License-Identifier: Apache-2.0
"""Find the state dict inside the content of a checkpoint file of any origin."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

# Names of entries with the weights, the usual ones first, and with averaged weights.
WRAPPERS = ("state_dict", "model", "model_state_dict", "params", "module")
AVERAGES = ("ema", "model_ema", "state_dict_ema", "params_ema", "ema_model", "teacher")
MODEL = ("backbone.", "patch_embed.", "conv_embedding.", "stages.0.0.repmlp_block.", "stage0.conv.")


def unwrap(checkpoint: object, ema: bool = False) -> dict[str, Tensor]:
    """Find the state dict inside a checkpoint, its arrays as tensors; the names are those in the file.

    It is looked for under ``state_dict``, ``model`` and other usual names, then under any other entry, averaged weights
    included, if it is the only one that holds parameters by name, or those of a backbone; otherwise the checkpoint
    itself is the state dict.

    Args:
        checkpoint: Content of a file.
        ema: Whether to return the weights averaged over training. Default: False.

    Returns:
        The state dict.

    Raises:
        ValueError: There is no state dict, or several and no usual name; or ``ema`` is set and there are no averaged
            weights.
    """
    return tensors_of(find_state_dict(checkpoint, ema))


def find_state_dict(checkpoint: object, ema: bool = False) -> Mapping:
    """Find the state dict inside a checkpoint as :func:`unwrap` does, and leave it as it is."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"The checkpoint is a {type(checkpoint).__name__}: expected a dict of tensors by name.")
    if ema and "ema_state_dict" in checkpoint:
        # MMEngine's EMAHook swaps the two: the averaged weights are the ones under state_dict.
        return find_state_dict(checkpoint["state_dict"])
    found = {key: value for key, value in checkpoint.items() if holds_state(key, value)}
    for key in AVERAGES if ema else WRAPPERS:
        if key in found:
            return find_state_dict(found[key])
    if ema:
        raise ValueError(
            f"The checkpoint holds no averaged weights: its entries are {abbreviate(checkpoint)}; expected one of "
            f"{', '.join(AVERAGES)} or ema_state_dict. Load it without ema (--ema)."
        )
    if len(found) > 1:  # a loss may have parameters as well
        found = {key: value for key, value in found.items() if holds_network(value)} or found
    if len(found) > 1:
        raise ValueError(
            f"The checkpoint holds weights under {abbreviate(found)}, and these names do not tell which to load. Save "
            "the wanted ones to a separate file."
        )
    if found:
        return find_state_dict(*found.values())
    if checkpoint and not any(is_array(value) for value in checkpoint.values()):
        raise ValueError(f"The checkpoint holds no weights: its entries are {abbreviate(checkpoint)}.")
    return checkpoint


def is_array(value: object) -> bool:
    """Whether a value is a tensor, or an array of numbers, as detectron2 stores them."""
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def tensors_of(state: Mapping) -> dict[str, object]:
    """Return the named entries of a state dict, arrays and sparse tensors as dense ones, with torch's metadata."""

    def to_tensor(value: object) -> object:
        if isinstance(value, np.ndarray) and is_array(value):
            return torch.tensor(value)
        return value.to_dense() if isinstance(value, Tensor) and value.layout != torch.strided else value

    tensors = OrderedDict((name, to_tensor(value)) for name, value in state.items() if isinstance(name, str))
    vars(tensors).update(getattr(state, "__dict__", {}))
    return tensors


def holds_state(key: object, value: object) -> bool:
    """Whether an entry of a checkpoint has parameters by name, at any depth; states of optimizers do not count."""
    if not isinstance(value, Mapping) or str(key).startswith("optim") or str(key).endswith("_extra_state"):
        return False
    return any(
        (is_array(part) and ("." in name or name in ("weight", "bias") or key in WRAPPERS)) or holds_state(name, part)
        for name, part in value.items()
        if isinstance(name, str)
    )


def holds_network(value: object) -> bool:
    """Whether a state dict or nested ones have the names of a model of OpenMMLab or a RepMLPNet."""
    return isinstance(value, Mapping) and any(
        any(f".{part}" in f".{name}" for part in MODEL) or holds_network(inner) for name, inner in value.items()
    )


def abbreviate(names: Iterable, limit: int = 10) -> str:
    """List at most ``limit`` names and the number of the remaining ones."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def meta_of(checkpoint: Mapping) -> dict:
    """Return the ``meta`` of an MMEngine checkpoint; empty if there is none, or something else of this name."""
    meta = checkpoint.get("meta")
    return dict(meta) if isinstance(meta, Mapping) else {}


def trained_metainfo(meta: Mapping) -> dict:
    """Return classes and palette of the dataset that a checkpoint was trained on, if its ``meta`` has them."""
    metainfo = meta.get("dataset_meta") or meta
    found = {name: metainfo.get(name) or metainfo.get(name.upper()) for name in ("classes", "palette")}
    return {name: value for name, value in found.items() if isinstance(value, (list, tuple))}
