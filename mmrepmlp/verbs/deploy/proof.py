# SPDX-License-Identifier: Apache-2.0
"""What is compared before a deployed network is written."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mmrepmlp.export.prediction import PredictionNetwork

from .folder import DeploymentError

FLOAT_TOLERANCE = 1e-4  # relative, of float32
AGREEMENT = {"bfloat16": 0.98, "int8": 0.9}  # share of predictions that are the same
DEVIATION = {"bfloat16": 0.05, "int8": 0.3}  # of logits and feature maps: root mean square over standard deviation


@dataclass
class Proof:
    """How far a graph is from the PyTorch model: in float32 by the :meth:`~NamedOutputs.error` for each shape of fresh
    random images, in other precisions on images that are described in words."""

    errors: dict[tuple[int, ...], float] | None = None
    agreement: float | None = None  # share of images or pixels with the same prediction
    deviation: float | None = None  # of logits and feature maps: root mean square difference over standard deviation
    images: str | None = None

    def as_json(self) -> dict[str, object]:
        """As plain data."""
        errors = [dict(shape=shape, error=error) for shape, error in (self.errors or {}).items()]
        return {**asdict(self), "errors": errors or None}

    def rows(self) -> dict[str, str]:
        """Lines of a table."""
        rows = {f"error, {'x'.join(map(str, s))}": f"{e:.1e}" for s, e in (self.errors or {}).items()}
        if self.agreement is not None:
            rows["same prediction"] = f"{self.agreement:.2%} on {self.images}"
        if self.deviation is not None:
            rows["deviation"] = f"{self.deviation:.1e} on {self.images}"
        return rows


@torch.no_grad()
def prove_close(
    network: PredictionNetwork, exported: Callable, images: Sequence[Tensor], where: str, precision: str
) -> Proof:
    """Compare a graph that rounds with the model, by its predictions on images (N, H, W, C), which ``where`` names, and
    refuse one that predicts something else too often."""
    pairs = [(network(batch), exported(batch)) for batch in images]
    if network.task.output in ("scores", "classes"):
        pick = (lambda x: x.argmax(1)) if network.task.output == "scores" else (lambda x: x)
        same = torch.cat([(pick(a) == pick(e)).flatten() for (e,), (a,) in pairs])
        proof = Proof(agreement=same.double().mean().item(), images=where)
        wrong = proof.agreement < AGREEMENT[precision]
    else:
        shares = [((a - e).square().mean() / e.var()).item() for es, as_ in pairs for e, a in zip(es, as_, strict=True)]
        proof = Proof(deviation=(sum(shares) / len(shares)) ** 0.5, images=where)
        wrong = not proof.deviation <= DEVIATION[precision]
    if wrong:
        reached = ", ".join(f"{name} {value}" for name, value in proof.rows().items())
        remedy = "more --images, --max-drop, or another precision" if precision == "int8" else "another precision"
        raise DeploymentError(
            f"In {precision} the graph differs from the model: {reached}. Nothing was written; try {remedy}."
        )
    return proof


def check_drop(
    before: float, after: float, name: str, scale: tuple[float, float], max_drop: float, exact: bool
) -> None:
    """Check how far a metric dropped, in points.

    Its scale is that of :func:`mmrepmlp.verbs.test.metrics.scale_of`. Where outputs agree, one step of its rounding is
    no drop.
    """
    unit, step = scale
    drop = unit * (before - after)
    if not drop <= max_drop + (1.001 * unit * step if exact else 0):
        raise DeploymentError(
            f"{name} drops by {drop:.2f} points, allowed {max_drop:g} (--max-drop). Nothing was written."
            + ("" if exact else " In int8, --max-drop leaves layers in float until it holds.")
        )
