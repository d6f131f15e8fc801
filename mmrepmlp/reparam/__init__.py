# SPDX-License-Identifier: Apache-2.0
from .addition import Addend, IdentityTap, LinearAddition, MiddleTap, TileTaps
from .compare import TOLERANCE, Difference, compare_outputs, distance, named_tensors
from .fuse import Affine, affine, conv_to_fc, fuse_after, fuse_before, identity_kernel, sum_kernels, to_float64
from .module import Reparameterizable, fuse_state_dict, required_tensors
from .walk import convertible_modules, switch_to_deploy
from .wrapped import refuse_wrapped

__all__ = [
    "TOLERANCE",
    "Addend",
    "Affine",
    "Difference",
    "IdentityTap",
    "LinearAddition",
    "MiddleTap",
    "Reparameterizable",
    "TileTaps",
    "affine",
    "compare_outputs",
    "conv_to_fc",
    "convertible_modules",
    "distance",
    "fuse_after",
    "fuse_before",
    "fuse_state_dict",
    "identity_kernel",
    "named_tensors",
    "refuse_wrapped",
    "required_tensors",
    "sum_kernels",
    "switch_to_deploy",
    "to_float64",
]
