# SPDX-License-Identifier: Apache-2.0
"""Checks of the tensors of a state dict."""

from collections.abc import Mapping

from torch import Tensor

from .unwrap import abbreviate

# The range of a torch observer is empty before its first input: from infinity to minus infinity.
OBSERVED = (".min_val", ".max_val")


def check_state_dict(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check the names, shapes and values of a state dict against the model that is to load it.

    Args:
        expected: The model's own state dict.
        state: The state dict to check.

    Raises:
        ValueError: They do not match. For each kind of fault the message lists ten names and the number of the rest.
    """
    shared = [name for name in expected if name in state]
    raise_faults(
        {
            "missing": [name for name in expected if name not in state],
            "unexpected": [name for name in state if name not in expected],
            "of another shape": [
                f"{name} {tuple(state[name].shape)} (the model: {tuple(expected[name].shape)})"
                for name in shared
                if state[name].shape != expected[name].shape
            ],
        }
    )
    check_values(expected, state)


def check_values(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check the values of the tensors that a state dict and a model share.

    Raises:
        ValueError: A dtype cannot be converted to the model's, or a tensor has non-finite values or negative variances.
    """
    shared = {name: value for name, value in state.items() if name in expected and isinstance(value, Tensor)}
    raise_faults(
        {
            "of another type": [
                f"{name} {value.dtype} (the model: {expected[name].dtype})"
                for name, value in shared.items()
                if expected[name].is_floating_point() and not value.is_floating_point()
            ]
        }
    )
    numbers = {name: value for name, value in shared.items() if value.is_floating_point() and not value.is_meta}
    numbers = {name: value.half() if value.itemsize == 1 else value for name, value in numbers.items()}  # float8
    raise_faults(
        {
            "not finite (NaN or Inf)": [
                name for name, value in numbers.items() if not name.endswith(OBSERVED) and not value.isfinite().all()
            ],
            "a variance below zero": [
                name for name, value in numbers.items() if name.endswith("running_var") and (value < 0).any()
            ],
        }
    )


def raise_faults(faults: Mapping[str, list[str]]) -> None:
    """Raise a ValueError that lists faults by kind, if there are any."""
    found = [f"{kind}: {abbreviate(names)}" for kind, names in faults.items() if names]
    if found:
        raise ValueError(f"The checkpoint does not fit the model. Tensors {'; '.join(found)}.")
