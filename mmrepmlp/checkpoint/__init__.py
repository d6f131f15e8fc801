# SPDX-License-Identifier: Apache-2.0
from .adapt import adapt_state_dict, build_form
from .classifier import HEAD, fit_names
from .names import architecture_of, backbone_part, form_of, to_native_names, to_official_names
from .reading import CheckpointError, load_from_local
from .schemes import LOADERS, load_from_url
from .unwrap import abbreviate, meta_of, unwrap
from .validate import check_state_dict, check_values, load_weights, needed, raise_faults
from .writing import atomic_folder, atomic_write, check_folder, check_overwrite, file_hash, save_checkpoint, save_hashed

__all__ = [
    "HEAD",
    "LOADERS",
    "CheckpointError",
    "abbreviate",
    "adapt_state_dict",
    "architecture_of",
    "atomic_folder",
    "atomic_write",
    "backbone_part",
    "build_form",
    "check_folder",
    "check_overwrite",
    "check_state_dict",
    "check_values",
    "file_hash",
    "fit_names",
    "form_of",
    "load_from_local",
    "load_from_url",
    "load_weights",
    "meta_of",
    "needed",
    "raise_faults",
    "save_checkpoint",
    "save_hashed",
    "to_native_names",
    "to_official_names",
    "unwrap",
]
