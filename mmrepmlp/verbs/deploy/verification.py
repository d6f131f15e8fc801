# SPDX-License-Identifier: Apache-2.0
"""Compare a graph with the PyTorch model before a deployed folder is written."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mmrepmlp.export.prediction import PredictionNetwork

from .folder import DeploymentError

FLOAT_TOLERANCE = 1e-4  # largest relative error in float32
AGREEMENT = {"bfloat16": 0.98, "int8": 0.9}  # smallest share of equal predictions
DEVIATION = {"bfloat16": 0.05, "int8": 0.3}  # largest deviation of logits and feature maps


@dataclass
class GraphComparison:
    """Differences between a graph and the PyTorch model.

    Attributes:
        errors: In float32, the :meth:`~NamedOutputs.error` on random images, by their shape.
        agreement: In other precisions, the share of images or pixels with the same prediction.
        deviation: In other precisions, for logits and feature maps, the root mean square difference over the standard
            deviation.
        images: Description of the images for agreement and deviation.
    """

    errors: dict[tuple[int, ...], float] | None = None
    agreement: float | None = None
    deviation: float | None = None
    images: str | None = None

    def as_json(self) -> dict[str, object]:
        """Return the comparison as plain data."""
        errors = [dict(shape=shape, error=error) for shape, error in (self.errors or {}).items()]
        return {**asdict(self), "errors": errors or None}

    def rows(self) -> dict[str, str]:
        """Return the rows of a table to print."""
        rows = {f"error, {'x'.join(map(str, s))}": f"{e:.1e}" for s, e in (self.errors or {}).items()}
        if self.agreement is not None:
            rows["same prediction"] = f"{self.agreement:.2%} on {self.images}"
        if self.deviation is not None:
            rows["deviation"] = f"{self.deviation:.1e} on {self.images}"
        return rows


@torch.no_grad()
def compare_rounded(
    network: PredictionNetwork, exported: Callable, images: Sequence[Tensor], origin: str, precision: str
) -> GraphComparison:
    """Compare the predictions of a bfloat16 or int8 graph with those of the model.

    Args:
        network: The model in PyTorch.
        exported: The graph.
        images: Batches of images (N, H, W, C).
        origin: Description of the images.
        precision: Precision of the graph.

    Raises:
        DeploymentError: Too many predictions differ.
    """
    pairs = [(network(batch), exported(batch)) for batch in images]
    if network.task.output in ("scores", "classes"):
        pick = (lambda x: x.argmax(1)) if network.task.output == "scores" else (lambda x: x)
        same = torch.cat([(pick(a) == pick(e)).flatten() for (e,), (a,) in pairs])
        comparison = GraphComparison(agreement=same.double().mean().item(), images=origin)
        wrong = comparison.agreement < AGREEMENT[precision]
    else:
        shares = [((a - e).square().mean() / e.var()).item() for es, as_ in pairs for e, a in zip(es, as_, strict=True)]
        comparison = GraphComparison(deviation=(sum(shares) / len(shares)) ** 0.5, images=origin)
        wrong = not comparison.deviation <= DEVIATION[precision]
    if wrong:
        reached = ", ".join(f"{name} {value}" for name, value in comparison.rows().items())
        remedy = "more --images, --max-drop, or another precision" if precision == "int8" else "another precision"
        raise DeploymentError(
            f"In {precision} the graph differs from the model: {reached}. Nothing was written; try {remedy}."
        )
    return comparison


def check_drop(
    before: float, after: float, name: str, scale: tuple[float, float], max_drop: float, exact: bool
) -> None:
    """Check that a metric did not drop too far.

    Args:
        before: Metric of the model in PyTorch.
        after: Metric of the graph.
        name: Name of the metric.
        scale: Its unit in percentage points and its rounding step, from :func:`mmrepmlp.verbs.test.metrics.scale_of`.
        max_drop: Largest allowed drop, in percentage points.
        exact: Whether outputs agree, so that one rounding step is allowed too.

    Raises:
        DeploymentError: The metric dropped too far.
    """
    unit, step = scale
    drop = unit * (before - after)
    if not drop <= max_drop + (1.001 * unit * step if exact else 0):
        raise DeploymentError(
            f"{name} drops by {drop:.2f} points, allowed {max_drop:g} (--max-drop). Nothing was written."
            + ("" if exact else " In int8, --max-drop leaves layers in float to stay within it.")
        )
