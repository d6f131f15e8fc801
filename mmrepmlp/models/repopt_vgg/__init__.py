# SPDX-License-Identifier: Apache-2.0
from .network import RepOptVGG

__all__ = ["RepOptVGG"]
