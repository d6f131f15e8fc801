# SPDX-License-Identifier: Apache-2.0
"""Select the metrics that are numbers, the main one among them, and its unit."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import as_list

# Metric classes, including their subclasses, that return percentages. The others return fractions up to 1.
PERCENTAGES = {"Accuracy", "SingleLabelMetric", "MultiLabelMetric", "AveragePrecision", "RetrievalRecall", "VQAAcc"}
PERCENTAGES |= {"IoUMetric", "SemSegMetric", "CocoPanopticMetric", "RefSegMetric", "RetrievalAveragePrecision"}
ROUNDING = {"mmseg": 1e-4, "mmdet": 1e-3}  # to which the frameworks' metrics round fractions; others do not round
NONE_LEFT = (
    "The test set yields no metric that is a number: it has no labels, or test_evaluator has format_only=True. "
    "Without --verify-on and --max-drop, predictions are compared instead."
)


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return the metrics that are numbers, not matrices or lists per class."""
    found = {}
    for name, value in metrics.items():
        with suppress(TypeError, ValueError, RuntimeError):
            found |= {} if isinstance(value, str) else {name: float(value)}
    return found


def main_metric(metrics: Mapping[str, float]) -> str:
    """Return the name of the metric to judge a network by: mIoU if there is one, else the first.

    Raises:
        MMRepMLPError: There are no metrics.
    """
    if not metrics:
        raise MMRepMLPError(NONE_LEFT)
    return next((name for name in metrics if name.endswith("mIoU")), next(iter(metrics)))


def check_scored(cfg: Config) -> None:
    """Check, before hours are spent, that a config's evaluator does not only write files instead of metrics.

    Raises:
        MMRepMLPError: All metrics have ``format_only=True``.
    """
    evaluators = [metric for metric in as_list(cfg.get("test_evaluator")) if isinstance(metric, Mapping)]
    if evaluators and all(metric.get("format_only") for metric in evaluators):
        raise MMRepMLPError(NONE_LEFT)


def scale_of(name: str, value: float, evaluators: Iterable[BaseMetric] = ()) -> tuple[float, float]:
    """Return the unit of a metric in percentage points, and the step to which it is rounded.

    Args:
        name: Name of the metric.
        value: Its value; above 1, the metric is a percentage, whatever its class.
        evaluators: Metrics of the evaluator, among them the one that returned it. Default: ().

    Returns:
        1 for percentages or 100 for fractions; and the step, in the unit of the metric, 0 if it is not rounded.
    """
    prefixed = [part for part in evaluators if part.prefix and name.startswith(f"{part.prefix}/")]
    others = [part for part in evaluators if not part.prefix and not isinstance(part, DumpResults)]
    classes = [kind for part in (prefixed or others)[:1] for kind in type(part).__mro__]
    is_percentage = any(kind.__name__ in PERCENTAGES for kind in classes) or abs(value) > 1
    step = max((ROUNDING.get(kind.__module__.partition(".")[0], 0.0) for kind in classes), default=0.0)
    return (1.0, 100 * min(step, 1e-4)) if is_percentage else (100.0, step)


def largest_step(metrics: Mapping[str, float], evaluators: Sequence[BaseMetric]) -> float:
    """Return the coarsest step to which any of the metrics is rounded."""
    return max((scale_of(name, value, evaluators)[1] for name, value in metrics.items()), default=0.0)
