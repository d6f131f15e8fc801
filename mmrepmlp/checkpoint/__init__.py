# SPDX-License-Identifier: Apache-2.0
from .adapt import adapt_state_dict
from .io import CheckpointError, atomic_write, load_from_local, save_checkpoint
from .names import architecture_of, form_of, to_native_names, unwrap
from .safety import trust_mmengine

__all__ = [
    "CheckpointError",
    "adapt_state_dict",
    "architecture_of",
    "atomic_write",
    "form_of",
    "load_from_local",
    "save_checkpoint",
    "to_native_names",
    "trust_mmengine",
    "unwrap",
]
