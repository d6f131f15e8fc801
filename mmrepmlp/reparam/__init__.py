# SPDX-License-Identifier: Apache-2.0
from .addition import Addend, IdentityTap, LinearAddition, MiddleTap, TileTaps
from .algebra import conv_to_fc, fold_after, fold_before, scale_and_shift
from .switch import Reparameterizable, convertible_modules, set_weight_and_bias, switch_to_deploy
from .verify import TOLERANCE, Difference, compare_outputs, distance, named_tensors

__all__ = [
    "TOLERANCE",
    "Addend",
    "Difference",
    "IdentityTap",
    "LinearAddition",
    "MiddleTap",
    "Reparameterizable",
    "TileTaps",
    "compare_outputs",
    "conv_to_fc",
    "convertible_modules",
    "distance",
    "fold_after",
    "fold_before",
    "named_tensors",
    "scale_and_shift",
    "set_weight_and_bias",
    "switch_to_deploy",
]
