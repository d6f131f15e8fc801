# SPDX-License-Identifier: Apache-2.0
"""Proof that two forms of a whole model compute the same: maps always, raw outputs where the model can be called."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmrepmlp.models import named_parts
from mmrepmlp.reparam import TOLERANCE, Difference, compare_outputs, named_tensors
from mmrepmlp.verbs.forward import random_images, run_model

SCALES = (1.0, 1.3)  # image sizes over the backbone's: a whole number of tiles, and none


def verify_in_float64(model: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> list[Difference]:
    """Convert a copy of a model in float64, where nothing but the algebra counts, and compare it with the original."""
    before = copy.deepcopy(model).double().eval()
    return compare_copies(before, convert(copy.deepcopy(before)), torch.float64, TOLERANCE[torch.float64])


def compare_models(before: nn.Module, after: nn.Module, dtype: torch.dtype, tolerance: float) -> list[Difference]:
    """Compare the maps and raw outputs of a model and its converted form on random images of two sizes.

    Heads that the conversion does not touch are functions of the maps: where all maps agree, a difference of theirs
    is what they make of rounding (a sorting, a threshold), and is reported without being a reason to refuse.

    Args:
        before: The model, whose parameters give the precision of the computation. Both are left as they are.
        after: The converted one.
        dtype: What to report as the precision of the converted weights.
        tolerance: Largest allowed difference, relative to an output's largest value.

    Returns:
        Differences of what could be computed before the conversion; infinite ones of what it could not after.
    """
    return compare_copies(copy.deepcopy(before), copy.deepcopy(after), dtype, tolerance)


@torch.no_grad()
def compare_copies(before: nn.Module, after: nn.Module, dtype: torch.dtype, tolerance: float) -> list[Difference]:
    """As :func:`compare_models`, on models that nobody needs any more: a forward pass may change one."""
    precision = next(before.parameters()).dtype
    maps, heads, callable_heads, unchanged = [], [], True, same_heads(before, after, dtype)
    for scale in SCALES:
        images = random_images(before, 2, scale).to(precision)
        expected, actual = run_model(before, images), run_model(after, images)
        callable_heads &= bool(expected.error) or not actual.error
        size = "" if scale == SCALES[0] else f" ({images.size(2)} x {images.size(3)} pixels)"
        same_parts = {name: maps for name, maps in actual.maps.items() if name in expected.maps}
        maps += compare_parts(expected.maps, same_parts, dtype, tolerance, size)
        if not expected.error:
            heads += compare_parts({"head": expected.head}, {"head": actual.head}, dtype, tolerance, size)
    maps_agree = bool(maps) and all(d.accepted for d in maps)
    if maps_agree and callable_heads and unchanged:
        for difference in heads:
            difference.required = False
    return maps + heads


@torch.no_grad()
def find_uncompared(model: nn.Module) -> dict[str, str]:
    """The outputs of a model that random images tell nothing about, and why, by name of the part; ``"heads"`` stands
    for the model's raw outputs."""
    images = random_images(model, 2).to(next(model.parameters()).dtype)
    outputs = run_model(copy.deepcopy(model), images)
    constant = {name: "it gives the same for all images" for name, maps in outputs.maps.items() if is_constant(maps)}
    return {**outputs.uncalled, **constant, **({"heads": outputs.error} if outputs.error else {})}


def is_constant(outputs: object) -> bool:
    """Whether no output differs between two samples."""
    return all(len(x) == 2 and torch.equal(x[0], x[1]) for _, x in named_tensors(outputs) if x.dim())


def is_converted(model: nn.Module, name: str) -> bool:
    """Whether a part of a model, by its name, has a deploy form."""
    part = named_parts(model).get(name, nn.Identity())
    return any(hasattr(module, "switch_to_deploy") for module in part.modules())


def compare_parts(
    before: dict[str, object], after: dict[str, object], dtype: torch.dtype, tolerance: float, suffix: str
) -> list[Difference]:
    """Compare outputs, named after the part that computes them."""
    differences = compare_outputs(before, after, dtype, tolerance)
    for difference in differences:
        difference.output = difference.output.removeprefix("output.") + suffix
    return differences


def same_heads(before: nn.Module, after: nn.Module, dtype: torch.dtype) -> bool:
    """Whether all tensors outside of the compared parts are the same, but for a cast to ``dtype``."""
    expected, actual = head_tensors(before), head_tensors(after)
    return expected.keys() == actual.keys() and all(
        actual[name].shape == value.shape
        and torch.equal(actual[name], value.to(dtype).to(value) if value.is_floating_point() else value)
        for name, value in expected.items()
    )


def head_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors outside of the parts whose maps are compared."""
    prefixes = tuple(f"{part}." for part in named_parts(model))
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}
