# SPDX-License-Identifier: Apache-2.0
from .adapt import adapt_state_dict
from .classifier import HEAD, fit_names
from .names import to_official_names
from .reading import CheckpointError, load_from_local
from .schemes import LOADERS
from .unwrap import abbreviate, meta_of, trained_metainfo, unwrap
from .validate import check_state_dict, load_weights, needed, raise_faults
from .writing import atomic_folder, atomic_write, check_folder, check_overwrite, file_hash, save_checkpoint, save_hashed

__all__ = [
    "HEAD",
    "LOADERS",
    "CheckpointError",
    "abbreviate",
    "adapt_state_dict",
    "atomic_folder",
    "atomic_write",
    "check_folder",
    "check_overwrite",
    "check_state_dict",
    "file_hash",
    "fit_names",
    "load_from_local",
    "load_weights",
    "meta_of",
    "needed",
    "raise_faults",
    "save_checkpoint",
    "save_hashed",
    "to_official_names",
    "trained_metainfo",
    "unwrap",
]
