# SPDX-License-Identifier: Apache-2.0
"""What a conversion did, to print and to keep."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mmengine
import torch
from rich import box
from rich.console import Group
from rich.table import Table

from mmrepmlp.reparam import Difference
from mmrepmlp.version import __version__

METRIC_TOLERANCE = 5e-5  # of a fraction; of a percentage, half a hundredth at 100 %


@dataclass
class ConversionReport:
    """A checkpoint before and after its conversion; pairs are training form and deploy form.

    Attributes:
        source: The checkpoint in training form.
        checkpoint: The file in deploy form; None where nothing was written.
        config: The config that loads it; None where nothing was written.
        parameters: Numbers of parameters.
        macs: Multiply-accumulate operations on one image, as far as the model can be called on images alone.
        converted: Names of the modules that were converted.
        differences: How far the outputs of each of them moved on the inputs that it gets in the model: converted in
            float64, where nothing but the algebra counts, and as the written file has it, in the precision of its
            weights. Those of the whole model are not required to agree.
        changed: Tensors of other modules that are not the same in the file.
        metrics: What the config's evaluator says of both, by name; empty where it was not asked.
        rounding: The step to which the framework rounds metrics; 0 where it does not.
        same_predictions: Share of the numbers in both predictions that are the same; None where the evaluator was not
            asked.
        channels: How many channels a layer computed, and computes where the training compressed it, by name.
        compression: How far outputs moved when those were removed, and what training had left to do.
        megabytes: Sizes of the weights.
        milliseconds: Medians of interleaved calls on one image, in eager mode on the CPU; None where the training
            compressed nothing.
    """

    source: Path
    parameters: tuple[int, int]
    macs: tuple[int, int]
    converted: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    rounding: float = 0.0
    same_predictions: float | None = None
    checkpoint: Path | None = None
    config: Path | None = None
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    compression: list[Difference] = field(default_factory=list)
    megabytes: tuple[float, float] = (0.0, 0.0)
    milliseconds: tuple[float, float] | None = None

    @property
    def exact(self) -> bool:
        """Whether all outputs agree in float64, where rounding plays no part."""
        return not self.changed and all(d.accepted for d in self.differences if d.dtype is torch.float64)

    def failures(self) -> list[str]:
        """The outputs that differ by more than is allowed, the tensors that changed, and the metrics, unless heads make
        much of rounding."""
        outputs = [
            f"{d.output} in {name_of(d.dtype)}: {d.relative:.1e} relative, allowed {d.tolerance:.0e}"
            for d in [*self.compression, *self.differences]
            if not d.accepted
        ]
        tensors = [f"{name} is not the same, and in no module that is converted" for name in self.changed]
        metrics = [
            f"{name}: {before} and {after}"
            for name, (before, after) in self.metrics.items()
            if not self.compression and not metrics_agree(before, after, self.rounding)
        ]
        return outputs + tensors + (metrics if all(d.within_tolerance for d in self.differences) else [])

    def table(self) -> Group:
        """The report to print; of the outputs the one that moved most, in each precision."""
        forms = Table(title=f"{self.checkpoint or self.source}", title_justify="left", box=box.SIMPLE)
        for column in ("", "training form", "deploy form"):
            forms.add_column(column, justify="right" if column else "left")
        forms.add_row("parameters", *(f"{count:,}" for count in self.parameters))
        forms.add_row("MB of weights", *(f"{size:.3f}" for size in self.megabytes))
        forms.add_row("GMACs", *(f"{count / 1e9:.3f}" for count in self.macs))
        if self.milliseconds:
            forms.add_row("ms an image, eager", *(f"{time:.2f}" for time in self.milliseconds))
        if self.channels:
            sums = (f"{sum(widths):,}" for widths in zip(*self.channels.values()))
            forms.add_row(f"channels of {len(self.channels)} layers", *sums)
        for metric, values in self.metrics.items():
            forms.add_row(metric, *(f"{value:.4f}" for value in values))
        if self.same_predictions is not None:
            forms.add_row("same predictions", "", f"{self.same_predictions:.4%}")
        errors = Table(box=box.SIMPLE)
        for column in ("largest difference", "absolute", "relative", "allowed"):
            errors.add_column(column, justify="left" if column == "largest difference" else "right")
        for dtype, required in dict.fromkeys((d.dtype, d.required) for d in self.differences):
            same = [d for d in self.differences if (d.dtype, d.required) == (dtype, required)]
            worst = max(same, key=lambda d: d.relative)
            what = "float64" if dtype is torch.float64 else f"file, {name_of(dtype)}"
            name = f"{what}, {worst.output}" + (f", of {len(same)} outputs" if len(same) > 1 else "")
            allowed = f"{worst.tolerance:.0e}" if required else "not limited"
            errors.add_row(name, f"{worst.absolute:.1e}", f"{worst.relative:.1e}", allowed)
        for difference in self.compression:
            figures = (difference.absolute, difference.relative)
            errors.add_row(difference.output, *(f"{x:.1e}" for x in figures), f"{difference.tolerance:.0e}")
        return Group(forms, errors, *self.remarks())

    def remarks(self) -> list[str]:
        """What the differences do not show, and why that is no gap."""
        advice = "" if self.same_predictions is not None else " --verify-on test compares the results on the test set."
        equal = "What is converted gives the same outputs, and all other weights are the same"
        if all(d.required for d in self.differences) and "" not in self.converted:
            return [f"{equal}. The whole model cannot be called on images alone.{advice}"]
        if not all(d.within_tolerance for d in self.differences):
            return [f"{equal}: the larger difference of the whole model is what its heads make of rounding.{advice}"]
        return []

    def to_json(self) -> str:
        """The report to keep, with all outputs and what it was made with."""
        content = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        for difference in content["differences"] + content["compression"]:
            difference["dtype"] = name_of(difference["dtype"])
        versions = dict(mmrepmlp=__version__, torch=torch.__version__, mmengine=mmengine.__version__)
        return json.dumps({**content, "versions": versions}, indent=2) + "\n"


def metrics_agree(before: float, after: float, rounding: float = 0.0) -> bool:
    """Whether a metric, a fraction or a percentage, is equal before and after a conversion, up to rounding.

    What is nan before, such as a metric of a class that no image shows, has to be nan after.
    """
    if math.isnan(before):
        return math.isnan(after)
    allowed = max(METRIC_TOLERANCE * max(1.0, abs(before)), rounding * 1.001)
    return abs(before - after) <= allowed  # false for nan


def name_of(dtype: torch.dtype) -> str:
    """Name of a precision, e.g. float32."""
    return str(dtype).removeprefix("torch.")
