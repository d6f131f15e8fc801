# SPDX-License-Identifier: Apache-2.0
"""Proof that a conversion changed nothing: the outputs before and after, element by element."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .switch import switch_to_deploy

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass
class Difference:
    """How far a conversion moved an output.

    Attributes:
        output: Which output, as a dotted path into what the model returns.
        dtype: Precision of the converted weights.
        absolute: Largest absolute difference of any element.
        relative: The same over the output's largest absolute value.
        tolerance: The largest allowed relative difference.
    """

    output: str
    dtype: torch.dtype
    absolute: float
    relative: float
    tolerance: float

    @property
    def accepted(self) -> bool:
        # Not the other way round: nan is no proof.
        return self.relative <= self.tolerance


@torch.no_grad()
def verify_conversion(
    model: nn.Module,
    inputs: Tensor,
    convert: Callable[[nn.Module], nn.Module] = switch_to_deploy,
    run: Callable[[nn.Module, Tensor], object] = lambda model, x: model(x),
    tolerance: dict[torch.dtype, float] = TOLERANCE,
) -> list[Difference]:
    """Convert copies of a model, one in each precision, and compare their outputs in eval mode with the original's.

    float64 shows whether the conversion is exact, float32 what rounding makes of it.

    Args:
        model: The model before the conversion. Left as it is.
        inputs: What to feed it.
        convert: The conversion, in place or not. Default: :func:`mmrepmlp.switch_to_deploy`.
        run: How to call a model; its outputs are tensors, or sequences or mappings of them. Default: with the inputs.
        tolerance: The largest allowed relative difference for each precision. Default: :data:`TOLERANCE`.

    Returns:
        The difference of each output in each precision.
    """
    differences = []
    for dtype, accepted in tolerance.items():
        before = copy.deepcopy(model).to(dtype).eval()
        after = convert(copy.deepcopy(before))
        differences += compare_outputs(run(before, inputs.to(dtype)), run(after, inputs.to(dtype)), dtype, accepted)
    return differences


def compare_outputs(before: object, after: object, dtype: torch.dtype, tolerance: float) -> list[Difference]:
    """Compare what a model returns before and after its conversion.

    Args:
        before: Tensors, or sequences or mappings of them.
        after: The same of the converted model.
        dtype: Precision of the converted weights.
        tolerance: The largest allowed relative difference.
    """
    actual, differences = dict(named_tensors(after)), []
    for name, expected in named_tensors(before):
        gap = (actual[name] - expected).abs().max().item()
        scale = max(expected.abs().max().item(), torch.finfo(expected.dtype).tiny)
        differences.append(Difference(name, dtype, gap, gap / scale, tolerance))
    return differences


def named_tensors(outputs: object, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Walk through nested sequences and mappings of tensors; names are dotted paths, e.g. ``"output.0.1"``."""
    if isinstance(outputs, Tensor):
        yield name, outputs
        return
    if isinstance(outputs, Mapping):
        parts = outputs.items()
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        parts = enumerate(outputs)
    else:
        return
    for key, part in parts:
        yield from named_tensors(part, f"{name}.{key}")
