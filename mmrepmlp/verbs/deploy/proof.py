# SPDX-License-Identifier: Apache-2.0
"""What is compared before a deployed network is written."""

from collections.abc import Callable, Mapping, Sequence
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
    """How far a graph is from the PyTorch model.

    Attributes:
        errors: In float32, for each shape of fresh random images the largest relative difference of an output; of
            classes, by which the model's own logits are larger for another one.
        agreement: In other precisions, the share of images or pixels with the same prediction; None for feature maps.
        deviation: In other precisions, of logits and feature maps: root mean square difference over standard deviation.
        images: What the last two were measured on, in words.
    """

    errors: dict[tuple[int, ...], float] | None = None
    agreement: float | None = None
    deviation: float | None = None
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
    """Compare a graph that rounds with the model, by its predictions.

    Args:
        network: The model.
        exported: The graph.
        images: Each (N, H, W, C), uint8.
        where: What the images are, in words.
        precision: What the graph computes in.

    Raises:
        DeploymentError: It predicts something else too often.
    """
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
        reached = f"{proof.agreement:.1%} of predictions are the same" if proof.agreement is not None else ""
        remedy = "more --images, --max-drop, or another precision" if precision == "int8" else "another precision"
        raise DeploymentError(
            f"In {precision} the graph differs from the model: {reached or f'deviation {proof.deviation:.2g}'} on "
            f"{where}. Nothing was written; try {remedy}."
        )
    return proof


def check_drop(before: Mapping[str, float], after: Mapping[str, float], max_drop: float) -> None:
    """Check how far the main metric dropped, in points.

    Raises:
        DeploymentError: Too far.
    """
    name = main_metric(before)
    drop = points(name, before[name]) - points(name, after[name])
    if not drop <= max_drop:
        raise DeploymentError(
            f"{name} drops by {drop:.2f} points, allowed {max_drop:g} (--max-drop). Nothing was written."
        )


def main_metric(metrics: Mapping[str, float]) -> str:
    """The metric that a network is judged by: mIoU where there is one, else the first."""
    return next((name for name in metrics if name.endswith("mIoU")), next(iter(metrics)))


def points(name: str, value: float) -> float:
    """A metric in points of a hundred; those of boxes and masks are fractions."""
    return float(value) * (100 if name.startswith(("coco", "pascal_voc", "lvis")) else 1)
