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
    """How far a conversion moved the outputs.

    Attributes:
        dtype: In which precision both ran.
        absolute: Largest absolute difference of any element.
        relative: Largest difference in an output, over that output's largest value; the worst of all outputs.
        tolerance: The largest accepted relative difference.
    """

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
        tolerance: The accepted relative difference for each precision. Default: :data:`TOLERANCE`.

    Returns:
        The difference in each precision.
    """
    differences = []
    for dtype, accepted in tolerance.items():
        before = copy.deepcopy(model).to(dtype).eval()
        after = convert(copy.deepcopy(before))
        expected, actual = (list(tensors_in(run(m, inputs.to(dtype)))) for m in (before, after))
        gaps = [(a - e).abs().max().item() for a, e in zip(actual, expected, strict=True)]
        scales = [max(e.abs().max().item(), torch.finfo(dtype).tiny) for e in expected]
        relative = max(gap / scale for gap, scale in zip(gaps, scales))
        differences.append(Difference(dtype, max(gaps), relative, accepted))
    return differences


def tensors_in(outputs: object) -> Iterator[Tensor]:
    """Walk through nested sequences and mappings of tensors."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        yield from tensors_in(list(outputs.values()))
    elif isinstance(outputs, Sequence):
        for output in outputs:
            yield from tensors_in(output)
