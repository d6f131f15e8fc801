# SPDX-License-Identifier: Apache-2.0
"""The authors' pruning methods, which make a trained model smaller."""

from .aofp_hook import AOFPHook
from .compactor import remove_compactors
from .compress import Compressed, compress
from .csgd_hook import CSGDHook
from .gradient_hook import GradientHook
from .groups import ChannelGroup, CompressionError, find_groups
from .gsm_hook import GSMHook
from .reduce import PrunedModel
from .resrep import ResRep, ResRepHook

__all__ = [
    "AOFPHook",
    "CSGDHook",
    "ChannelGroup",
    "Compressed",
    "CompressionError",
    "GSMHook",
    "GradientHook",
    "PrunedModel",
    "ResRep",
    "ResRepHook",
    "compress",
    "find_groups",
    "remove_compactors",
]
