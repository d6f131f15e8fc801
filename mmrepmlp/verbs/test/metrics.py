# SPDX-License-Identifier: Apache-2.0
"""Which metrics are numbers, by which one a network is judged, and what its unit is."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import as_list

# Classes of the frameworks that give percentages, and all that inherit from them. The rest is a fraction up to 1.
PERCENTAGES = {"Accuracy", "SingleLabelMetric", "MultiLabelMetric", "AveragePrecision", "RetrievalRecall", "VQAAcc"}
PERCENTAGES |= {"IoUMetric", "SemSegMetric", "CocoPanopticMetric", "RefSegMetric", "RetrievalAveragePrecision"}
ROUNDING = {"mmseg": 1e-4, "mmdet": 1e-3}  # what the frameworks' own classes round a fraction to; others do not round
NONE_LEFT = (
    "The test set gives no metric that is a number: it has no labels, or test_evaluator has format_only=True. "
    "Without --verify-on and --max-drop, predictions are compared instead."
)


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """The metrics that are numbers, not lists by class or matrices."""
    found = {}
    for name, value in metrics.items():
        with suppress(TypeError, ValueError, RuntimeError):
            found |= {} if isinstance(value, str) else {name: float(value)}
    return found


def main_metric(metrics: Mapping[str, float]) -> str:
    """The metric that a network is judged by: mIoU where there is one, else the first."""
    if not metrics:
        raise MMRepMLPError(NONE_LEFT)
    return next((name for name in metrics if name.endswith("mIoU")), next(iter(metrics)))


def check_scored(cfg: Config) -> None:
    """Check, before hours are spent, that a config's evaluator is not told to write files in place of metrics."""
    evaluators = [metric for metric in as_list(cfg.get("test_evaluator")) if isinstance(metric, Mapping)]
    if evaluators and all(metric.get("format_only") for metric in evaluators):
        raise MMRepMLPError(NONE_LEFT)


def scale_of(name: str, value: float, evaluators: Iterable[BaseMetric] = ()) -> tuple[float, float]:
    """How many points of a hundred each 1 of a metric counts, asked of the class that gives it, and where none does
    told by its value, and the step to which it is rounded, in its own unit; 0 where it is not."""
    prefixed = [part for part in evaluators if part.prefix and name.startswith(f"{part.prefix}/")]
    others = [part for part in evaluators if not part.prefix and not isinstance(part, DumpResults)]
    classes = [kind for part in (prefixed or others)[:1] for kind in type(part).__mro__]
    is_percentage = any(kind.__name__ in PERCENTAGES for kind in classes) or abs(value) > 1
    step = max((ROUNDING.get(kind.__module__.partition(".")[0], 0.0) for kind in classes), default=0.0)
    return (1.0, 100 * min(step, 1e-4)) if is_percentage else (100.0, step)


def largest_step(metrics: Mapping[str, float], evaluators: Sequence[BaseMetric]) -> float:
    """The coarsest rounding of any of the metrics."""
    return max((scale_of(name, value, evaluators)[1] for name, value in metrics.items()), default=0.0)
