# SPDX-License-Identifier: Apache-2.0
from .digits import write_digits

__all__ = ["write_digits"]
