# SPDX-License-Identifier: Apache-2.0
"""Proof that two forms of a whole model compute the same: maps always, raw outputs where the model can be called."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmrepmlp.apis.forward import PARTS, ModelOutputs, random_images, run_model
from mmrepmlp.reparam import TOLERANCE, Difference, compare_outputs

SCALES = (1.0, 1.3)  # image sizes over the backbone's: a whole number of tiles, and none


def verify_in_float64(model: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> list[Difference]:
    """Convert a copy of a model in float64, where nothing but the algebra counts, and compare it with the original."""
    before = copy.deepcopy(model).double().eval()
    return compare_models(before, convert(copy.deepcopy(before)), torch.float64, TOLERANCE[torch.float64])


@torch.no_grad()
def compare_models(before: nn.Module, after: nn.Module, dtype: torch.dtype, tolerance: float) -> list[Difference]:
    """Compare the maps and raw outputs of a model and its converted form on random images of two sizes.

    Heads that the conversion does not touch are functions of the maps: where all maps agree, a difference of theirs
    is what they make of rounding (a sorting, a threshold), and is reported without being a reason to refuse.

    Args:
        before: The model, whose parameters give the precision of the computation.
        after: The converted one.
        dtype: What to report as the precision of the converted weights.
        tolerance: Largest allowed difference, relative to an output's largest value.

    Raises:
        Exception: Of the model, where it cannot be run on images of its own size.
    """
    precision = next(before.parameters()).dtype
    differences, callable_heads = [], True
    for scale in SCALES:
        images = random_images(before, 2, scale).to(precision)
        try:
            expected = run_model(before, images)
        except Exception:
            if scale == SCALES[0]:
                raise
            continue  # a backbone of one image size
        size = "" if scale == SCALES[0] else f" ({images.size(2)} x {images.size(3)} pixels)"
        actual = run_model(after, images)
        callable_heads &= bool(expected.error) or not actual.error
        differences += compare_parts(expected, actual, dtype, tolerance, size)
    maps = [d for d in differences if not is_of_head(d)]
    maps_agree = bool(maps) and all(d.accepted for d in maps)
    if maps_agree and callable_heads and same_heads(before, after, dtype):
        for difference in filter(is_of_head, differences):
            difference.required = False
    return differences


@torch.no_grad()
def heads_error(model: nn.Module) -> str | None:
    """Why the heads of a model cannot be called on random images; None if they can."""
    images = random_images(model, 1).to(next(model.parameters()).dtype)
    return run_model(model, images).error


def compare_parts(
    before: ModelOutputs, after: ModelOutputs, dtype: torch.dtype, tolerance: float, suffix: str
) -> list[Difference]:
    """Compare outputs, named after the part that computes them."""
    differences = compare_outputs(before.parts(), after.parts(), dtype, tolerance)
    for difference in differences:
        difference.output = difference.output.removeprefix("output.") + suffix
    return differences


def is_of_head(difference: Difference) -> bool:
    return difference.output.startswith("head")


def same_heads(before: nn.Module, after: nn.Module, dtype: torch.dtype) -> bool:
    """Whether there are maps to compare and all other parts have kept their tensors, but for a cast to ``dtype``."""
    expected, actual = head_tensors(before), head_tensors(after)
    return (
        hasattr(before, "backbone")
        and expected.keys() == actual.keys()
        and all(
            actual[name].shape == value.shape
            and torch.equal(actual[name], value.to(dtype).to(value) if value.is_floating_point() else value)
            for name, value in expected.items()
        )
    )


def head_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors outside of backbone and neck."""
    prefixes = tuple(f"{part}." for part in PARTS)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}
