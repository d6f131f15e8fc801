# SPDX-License-Identifier: Apache-2.0
"""Time and memory per megapixel over image sizes."""

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from mmrepmlp.apis.benchmarks.hardware import CPU, Hardware
from mmrepmlp.apis.benchmarks.measure import BenchmarkReport, interleave
from mmrepmlp.models import RepMLPNet

FORMS = ("training form", "deploy form")


@dataclass
class SizeMeasurement:
    """A forward pass of one image.

    Attributes:
        form: ``training form`` or ``deploy form``.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        milliseconds: Median time.
        peak_mib: Memory that it adds at its peak, in MiB; None where it cannot be measured.
    """

    form: str
    height: int
    width: int
    milliseconds: float
    peak_mib: float | None

    @property
    def megapixels(self) -> float:
        return self.height * self.width / 1e6


class SizeBenchmark(BenchmarkReport):
    """A sweep over image sizes: rows of :class:`SizeMeasurement`."""

    def table(self) -> Table:
        """The sweep as a table to print."""
        table = self.empty_table()
        table.add_column("form", no_wrap=True)
        for column in ("size", "ms", "ms per megapixel", "MiB", "MiB per megapixel"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            memory = ("", "") if row.peak_mib is None else (row.peak_mib, row.peak_mib / row.megapixels)
            figures = (row.milliseconds, row.milliseconds / row.megapixels, *memory)
            table.add_row(row.form, f"{row.height}x{row.width}", *(f if f == "" else f"{f:.0f}" for f in figures))
        return table

    def plot(self, path: str | Path) -> None:
        """Plot time and memory per megapixel over the image size, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, name, unit in zip(panels, ("milliseconds", "peak_mib"), ("ms", "MiB")):
            for form in FORMS:
                rows = [row for row in self.rows if row.form == form and getattr(row, name) is not None]
                values = [getattr(row, name) / row.megapixels for row in rows]
                panel.plot([math.sqrt(row.height * row.width) for row in rows], values, marker="o", label=form)
            panel.set(
                xlabel="side of the image, or of a square of its area, pixels",
                ylabel=f"{unit} per megapixel",
                ylim=(0, None),
            )
            panel.grid(alpha=0.3)
        panels[0].legend()
        self.save_figure(figure, path)


@torch.inference_mode()
def benchmark_sizes(
    arch: str = "B",
    img_size: int = 224,
    sizes: Sequence[tuple[int, int]] = ((256, 256), (512, 512), (1024, 1024), (2048, 2048)),
    dtype: str = "float32",
    repeats: int = 5,
    hardware: Hardware = CPU,
) -> SizeBenchmark:
    """Benchmark both forms of a RepMLPNet on single images of several sizes.

    Args:
        arch: Letter of the architecture. Default: B.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        sizes: Height and width of the images in pixels. Default: squares of 256, 512, 1024 and 2048.
        dtype: Precision: float32, float64, bfloat16 or float16. Default: float32.
        repeats: Timed calls per measurement. Default: 5.
        hardware: Where and how to compute. Default: the CPU.

    Raises:
        MMRepMLPError: There is no such device.
    """
    hardware.prepare()
    precision = getattr(torch, dtype)
    model = hardware.place(RepMLPNet(arch, img_size, out_indices=(0, 1, 2, 3)).to(precision).eval())
    deployed = copy.deepcopy(model)
    deployed.switch_to_deploy()
    rows = []
    for height, width in sizes:
        x = hardware.place(torch.randn(1, 3, height, width, dtype=precision))
        calls = {form: hardware.calling(m, x) for form, m in zip(FORMS, (model, deployed))}
        seconds = interleave(calls, repeats, f"{arch}{img_size}, {height}x{width} pixels", hardware)
        for form, call in calls.items():
            milliseconds = 1e3 * statistics.median(seconds[form])
            rows.append(SizeMeasurement(form, height, width, milliseconds, hardware.peak_memory(call)))
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", dtype=dtype, repeats=repeats)
    return SizeBenchmark({**settings, **hardware.environment()}, rows)
