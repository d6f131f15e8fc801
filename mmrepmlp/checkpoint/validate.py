# SPDX-License-Identifier: Apache-2.0
"""Check the tensors of a state dict."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .classifier import fit_names
from .unwrap import abbreviate

NOT_FINITE = "not finite (NaN or Inf)"
AUXILIARY = "auxiliary_head."  # prefix of heads for training only
MISFIT = re.compile(r"size mismatch for (\S+): .* shape torch\.Size\((.*?)\) from .* model is torch\.Size\((.*)\)\.")


class Misfit(str):
    """The name of a tensor, its shape, and the shape of the model's tensor."""

    def __new__(cls, name: str, shape: Iterable[int], wanted: Iterable[int]) -> "Misfit":
        shape, wanted = list(shape), list(wanted)
        self = super().__new__(cls, f"{name} {shape} (the model: {wanted})")
        self.sides = list(zip(shape, wanted))
        return self


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Load all tensors of a state dict that fit, whatever the prefix of their names.

    Args:
        model: The model.
        state: The state dict.

    Returns:
        The names of tensors that were not loaded: those that are ``missing``, ``of another shape`` or ``unexpected``.

    Raises:
        ValueError: The state dict holds several such models, has another architecture, of networks that compare it, or
            has values that no network has.
    """
    expected = model.state_dict()
    state = fit_names(state, expected)
    check_values(expected, state)
    faults: dict[str, list[str]] = {"missing": [], "of another shape": [], "unexpected": []}

    def note(_: nn.Module, keys: NamedTuple) -> None:
        faults["missing"] = [name for name in keys.missing_keys if not name.endswith("num_batches_tracked")]
        faults["unexpected"] = list(keys.unexpected_keys)

    handle = model.register_load_state_dict_post_hook(note)  # torch calls it before it raises an error about shapes
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's list of them, one per line
        lines = str(error).splitlines()
        if not lines[0].startswith("Error(s) in loading state_dict"):
            raise
        faults["of another shape"] = [read_misfit(line) for line in lines[1:]]
    finally:
        handle.remove()
    return faults


def read_misfit(line: str) -> str:
    """Shorten a line of torch's list of tensors that do not fit."""
    if found := MISFIT.search(line):
        return Misfit(found[1], *([int(side) for side in re.findall(r"\d+", shape)] for shape in found.groups()[1:]))
    return line.strip().rstrip(".")


def needed(faults: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the faults of :func:`load_weights` that change the predictions of a model: neither those of auxiliary
    heads nor unexpected tensors."""
    kinds = ("missing", "of another shape")
    return {kind: [name for name in faults[kind] if not name.startswith(AUXILIARY)] for kind in kinds}


def check_state_dict(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check the names, shapes and values of a state dict against those of the model that is to load it.

    Raises:
        ValueError: They do not fit.
    """
    shared = [name for name in expected if name in state]
    raise_faults(
        {
            "missing": [name for name in expected if name not in state],
            "unexpected": [name for name in state if name not in expected],
            "of another shape": [
                Misfit(name, state[name].shape, expected[name].shape)
                for name in shared
                if state[name].shape != expected[name].shape
            ],
        }
    )
    check_values(expected, state)


def check_values(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check the values of the tensors that a state dict and a model share: dtypes that can be converted to the model's,
    finite values, and no negative variances."""
    shared = {name: value for name, value in state.items() if name in expected and isinstance(value, Tensor)}
    variances = {name: value for name, value in shared.items() if name.endswith("running_var") and not value.is_meta}
    raise_faults(
        {
            "of another type": [
                f"{name} {value.dtype} (the model: {expected[name].dtype})"
                for name, value in shared.items()
                if expected[name].is_floating_point() and not value.is_floating_point()
            ],
            NOT_FINITE: not_finite(expected, state),
            "a variance below zero": [name for name, value in variances.items() if (value.double() < 0).any()],
        }
    )


def not_finite(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors of a state dict with NaN, or with Inf if the model's own tensor has none; masks and the empty
    ranges of torch's observers have some."""

    def holds(test: Callable[[Tensor], Tensor], value: Tensor) -> bool:
        return not value.is_meta and bool(test(value.half() if value.itemsize == 1 else value).any())  # float8

    shared = {name: value for name, value in state.items() if name in expected and isinstance(value, Tensor)}
    return [
        name
        for name, value in shared.items()
        if value.is_floating_point()
        and (holds(torch.isnan, value) or (holds(torch.isinf, value) and not holds(torch.isinf, expected[name])))
    ]


def raise_faults(faults: Mapping[str, list[str]]) -> None:
    """Raise a ValueError that lists faults by kind, if there are any."""
    found = [f"{kind}: {abbreviate(names)}" for kind, names in faults.items() if names]
    if found:
        text = f"The checkpoint does not fit the model. Tensors {'; '.join(found)}."
        if is_narrower(faults.get("of another shape", ())):
            text += " A compressed network needs the config that mmrepmlp reparameterize writes beside it."
        raise ValueError(text)


def is_narrower(misfits: Iterable[str]) -> bool:
    """Whether some layers have fewer outputs and some fewer inputs than the model's, and none has more."""
    sides = [misfit.sides for misfit in misfits if isinstance(misfit, Misfit)]
    fewer = [[side < wanted for side, wanted in pairs] for pairs in sides]
    more = any(side > wanted for pairs in sides for side, wanted in pairs)
    return not more and any(any(axis[:1]) for axis in fewer) and any(any(axis[1:2]) for axis in fewer)
