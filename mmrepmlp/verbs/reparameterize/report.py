# SPDX-License-Identifier: Apache-2.0
"""Report on a conversion, to print and to save."""

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

METRIC_TOLERANCE = 5e-5  # absolute for fractions, relative for percentages


@dataclass
class ConversionReport:
    """Comparison of a checkpoint before and after its conversion; pairs are training form and deploy form.

    Attributes:
        source: The checkpoint in training form.
        checkpoint: The file in deploy form; None if nothing was written.
        config: The config that loads it; None if nothing was written.
        parameters: Number of parameters.
        macs: Multiply-accumulate operations on one image, in all parts that run on images alone.
        converted: Names of the converted modules.
        differences: Change of the outputs of each converted module, on its inputs in the model: converted in float64,
            where it must be exact, and as stored in the file. Outputs of the whole model are not required to agree.
        changed: Tensors of other modules that differ in the file.
        metrics: Metrics of the config's evaluator, by name; empty without ``verify_on``.
        rounding: Step to which the framework rounds metrics; 0 if it does not.
        same_predictions: Share of equal numbers in the predictions; None without ``verify_on``.
        channels: Output channels before and after of each layer that training compressed, by name.
        compression: Change of outputs when those channels were removed, and before that, when the compression was
            completed that training had left unfinished.
        megabytes: Size of the weights, in units of 1e6 bytes.
        milliseconds: Median of interleaved calls on one image, in eager mode on the CPU; None without compression.
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
        """Whether all outputs agree in float64, where rounding is negligible."""
        return not self.changed and all(d.accepted for d in self.differences if d.dtype is torch.float64)

    def failures(self) -> list[str]:
        """Describe outputs that differ too much, tensors that changed, and metrics that differ.

        Metrics are left out if the outputs of the whole model differ, since heads can amplify rounding.
        """
        outputs = [
            f"{d.output} in {name_of(d.dtype)}: {d.relative:.1e} relative, allowed {d.tolerance:.0e}"
            for d in [*self.compression, *self.differences]
            if not d.accepted
        ]
        tensors = [f"{name} differs, although its module is not converted" for name in self.changed]
        metrics = [
            f"{name}: {before} and {after}"
            for name, (before, after) in self.metrics.items()
            if not self.compression and not metrics_agree(before, after, self.rounding)
        ]
        return outputs + tensors + (metrics if all(d.within_tolerance for d in self.differences) else [])

    def table(self) -> Group:
        """Return the report to print, with the largest difference in each precision."""
        forms = Table(title=f"{self.checkpoint or self.source}", title_justify="left", box=box.SIMPLE)
        for column in ("", "training form", "deploy form"):
            forms.add_column(column, justify="right" if column else "left")
        forms.add_row("parameters", *(f"{count:,}" for count in self.parameters))
        forms.add_row("MB of weights", *(f"{size:.3f}" for size in self.megabytes))
        forms.add_row("GMACs", *(f"{count / 1e9:.3f}" for count in self.macs))
        if self.milliseconds:
            forms.add_row("ms per image, eager", *(f"{time:.2f}" for time in self.milliseconds))
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
            kind = "float64" if dtype is torch.float64 else f"file, {name_of(dtype)}"
            name = f"{kind}, {worst.output}" + (f", of {len(same)} outputs" if len(same) > 1 else "")
            allowed = f"{worst.tolerance:.0e}" if required else "not limited"
            errors.add_row(name, f"{worst.absolute:.1e}", f"{worst.relative:.1e}", allowed)
        for difference in self.compression:
            figures = (difference.absolute, difference.relative)
            errors.add_row(difference.output, *(f"{x:.1e}" for x in figures), f"{difference.tolerance:.0e}")
        return Group(forms, errors, *self.remarks())

    def remarks(self) -> list[str]:
        """Explain why the whole model was not compared, or why it differs."""
        advice = "" if self.same_predictions is not None else " --verify-on test compares the results on the test set."
        equal = "Converted modules have the same outputs, and all other weights are the same"
        if all(d.required for d in self.differences) and "" not in self.converted:
            return [f"{equal}. The whole model cannot be called on images alone.{advice}"]
        if not all(d.within_tolerance for d in self.differences):
            return [f"{equal}: the larger difference of the whole model is rounding, amplified by its heads.{advice}"]
        return []

    def to_json(self) -> str:
        """Return the report to save, with all outputs and the versions of packages."""
        content = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        for difference in content["differences"] + content["compression"]:
            difference["dtype"] = name_of(difference["dtype"])
        versions = dict(mmrepmlp=__version__, torch=torch.__version__, mmengine=mmengine.__version__)
        return json.dumps({**content, "versions": versions}, indent=2) + "\n"


def metrics_agree(before: float, after: float, rounding: float = 0.0) -> bool:
    """Whether a metric, a fraction or a percentage, is equal before and after a conversion, up to rounding.

    A metric that is nan before, such as that of a class in no image, has to be nan after.
    """
    if math.isnan(before):
        return math.isnan(after)
    allowed = max(METRIC_TOLERANCE * max(1.0, abs(before)), rounding * 1.001)
    return abs(before - after) <= allowed  # false for nan


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, e.g. float32."""
    return str(dtype).removeprefix("torch.")
