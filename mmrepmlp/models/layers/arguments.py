# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that several modules have."""

from collections.abc import Sequence


def check_positive(**arguments: int) -> None:
    """Check arguments that are positive ints.

    Raises:
        ValueError: One is not.
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive int.")


def check_kernels(kernels: Sequence[int]) -> None:
    """Check the sides of local branches' kernels.

    Raises:
        ValueError: One is even or no int, or there are two of a side.
    """
    if any(not isinstance(k, int) or k < 1 or k % 2 == 0 for k in kernels) or len(set(kernels)) < len(kernels):
        raise ValueError(f"reparam_conv_kernels={kernels}: expected distinct, odd, positive ints, e.g. (1, 3).")
