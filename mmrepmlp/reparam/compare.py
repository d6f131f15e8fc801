# SPDX-License-Identifier: Apache-2.0
"""Verify that a conversion changes nothing: compare the outputs before and after, element by element."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fuse import to_float64

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass
class Difference:
    """The difference that a conversion makes to an output.

    Attributes:
        output: Dotted path of the output in the model's return value.
        dtype: Precision of the converted weights.
        absolute: Largest absolute difference of any element.
        relative: The same, relative to the output's largest absolute value.
        tolerance: The largest allowed relative difference.
        required: Whether to refuse the conversion if the difference is larger. Default: True.
    """

    output: str
    dtype: torch.dtype
    absolute: float
    relative: float
    tolerance: float
    required: bool = True

    @property
    def within_tolerance(self) -> bool:
        # Not the other way round: nan is not within the tolerance.
        return self.relative <= self.tolerance

    @property
    def accepted(self) -> bool:
        return self.within_tolerance or not self.required


def compare_outputs(before: object, after: object, dtype: torch.dtype, tolerance: float) -> list[Difference]:
    """Compare the outputs of a model before and after its conversion: tensors, or sequences or mappings of them.

    An output that is missing on one side, or has another shape, differs infinitely.
    """
    expected, actual = dict(named_tensors(before)), dict(named_tensors(after))
    return [
        Difference(name, dtype, *distance(actual.get(name), expected.get(name)), tolerance)
        for name in expected | actual
    ]


def distance(actual: Tensor | None, expected: Tensor | None) -> tuple[float, float]:
    """Return the largest absolute difference of two tensors, and the same relative to the largest finite absolute value
    of the second."""
    if actual is None or expected is None or actual.shape != expected.shape:
        return float("inf"), float("inf")
    if not expected.numel():
        return 0.0, 0.0
    actual, expected = to_float64(actual), to_float64(expected)
    # Masked scores are infinite, and equal infinities have no difference.
    gap = (actual - expected).masked_fill(actual == expected, 0).abs().max().item()
    scale = expected.masked_fill(expected.isinf(), 0).abs().max().item()
    return gap, gap / max(scale, torch.finfo(torch.float64).tiny)


def named_tensors(outputs: object, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested sequences, mappings and data elements by name, a dotted path such as
    ``"output.0.1"``."""
    if isinstance(outputs, Tensor):
        yield name, outputs
        return
    if isinstance(outputs, Mapping) or hasattr(outputs, "all_items"):  # as MMEngine's data elements have
        parts = outputs.items()
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        parts = enumerate(outputs)
    else:
        return
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}")
