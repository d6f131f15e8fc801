# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of models side by side, in one process."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from rich import box
from rich.progress import track
from rich.table import Table

from mmrepmlp.checkpoint import atomic_write
from mmrepmlp.verbs.benchmark.hardware import CPU, Hardware

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SGEMM_SIDE = 2048


@dataclass
class Measurement:
    """One row of a benchmark.

    Attributes:
        model: Name of the implementation, or ``sgemm`` for the reference, a matrix product.
        task: ``training form`` or ``deploy form`` for a forward pass, ``training step``, or the library that computes
            the reference.
        batch: Number of images; None for the reference.
        milliseconds: Median time of a call.
        speedup: Speed relative to mmpretrain's row of the same task; None for the reference.
        gflops: GFLOP/s, counting the operations of the deploy form's forward pass; None for a training step.
        sgemm_share: That rate relative to the machine's rate for a matrix product, measured alongside.
        error: Largest difference of the output from that of mmpretrain's training form, over its largest value; None
            for that form itself, for networks with different weights, and for a training step.
        peak_mib: Memory that a call adds at its peak; None where it cannot be measured.
    """

    model: str
    task: str
    batch: int | None
    milliseconds: float
    speedup: float | None
    gflops: float | None
    sgemm_share: float | None
    error: float | None
    peak_mib: float | None


@dataclass
class BenchmarkReport:
    """The rows of a benchmark, and the environment in which they were measured."""

    environment: dict[str, object]
    rows: list

    def save_json(self, path: str | Path) -> None:
        """Write environment and rows as JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def empty_table(self, caption: str | None = None) -> Table:
        """A table without columns, with the environment as its title."""
        return Table(
            title="\n".join(f"{name}: {value}" for name, value in self.environment.items()),
            title_justify="left",
            caption=caption,
            caption_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
        )

    def save_figure(self, figure: "Figure", path: str | Path) -> None:
        """Write a figure as PNG, titled with the architecture or the config and the number of threads."""
        model = self.environment.get("arch") or Path(self.environment["config"]).stem
        figure.suptitle(f"{model}, {self.environment.get('gpu') or '{threads} threads'.format(**self.environment)}")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


class Benchmark(BenchmarkReport):
    """Rows of :class:`Measurement`."""

    def table(self) -> Table:
        """The benchmark as a table to print."""
        caption = (
            "ms: median. ratio: speed over mmpretrain's at the same task. sgemm: share of the rate of a matrix product "
            f"of side {SGEMM_SIDE}, measured in between, by the faster of torch's two libraries. MiB: what a call adds "
            "to the memory in use at its peak. error: largest difference from the output of mmpretrain's training "
            "form, relative to its largest value."
        )
        table = self.empty_table(caption)
        table.collapse_padding = True
        for column in ("model", "task"):
            table.add_column(column, no_wrap=True)
        for column in ("batch", "ms", "ratio", "GFLOP/s", "sgemm", "error", "MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.model,
                row.task,
                "" if row.batch is None else str(row.batch),
                f"{row.milliseconds:.1f}",
                "" if row.speedup is None else f"{row.speedup:.2f}",
                "" if row.gflops is None else f"{row.gflops:.0f}",
                "" if row.sgemm_share is None else f"{row.sgemm_share:.0%}",
                "" if row.error is None else f"{row.error:.0e}",
                "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
            )
        return table

    def plot(self, path: str | Path) -> None:
        """Draw the time per image as bars, one panel per batch size, as PNG."""
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if row.batch is not None]
        batches = list(dict.fromkeys(row.batch for row in rows))
        models = list(dict.fromkeys(row.model for row in rows))
        tasks = list(dict.fromkeys(row.task for row in rows))
        figure = Figure(figsize=(5 * len(batches), 4), layout="constrained")
        for panel, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches):
            for i, model in enumerate(models):
                times = {row.task: row.milliseconds / batch for row in rows if (row.model, row.batch) == (model, batch)}
                places = [tasks.index(task) + 0.4 * (i - (len(models) - 1) / 2) for task in times]
                panel.bar_label(panel.bar(places, list(times.values()), width=0.38, label=model), fmt="%.0f")
            panel.set(xticks=range(len(tasks)), xticklabels=tasks, ylabel="ms per image", title=f"batch {batch}")
        panel.legend()
        self.save_figure(figure, path)


def interleave(
    functions: dict[str, Callable[[], object]], repeats: int, title: str = "", hardware: Hardware = CPU
) -> dict[str, list[float]]:
    """Time functions in interleaved calls, so that drift of the machine affects all of them equally.

    Args:
        functions: What to call, by name. Each is called once as a warm-up.
        repeats: Number of timed calls of each.
        title: Text of the progress bar.
        hardware: What times them. Default: the CPU.

    Returns:
        The seconds of each call, by name.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in track(range(repeats), description=title, transient=True):
        for name, function in functions.items():
            seconds[name].append(hardware.time(function))
    return seconds


def reference_matmuls(dtype: torch.dtype, hardware: Hardware = CPU) -> dict[str, Callable[[], object]]:
    """A square matrix product, the reference, by each library that torch uses for matrix products.

    The faster one depends on the processor: oneDNN or the BLAS that torch was built with, often MKL, may have half the
    rate of the other.
    """
    a, b = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE, dtype=dtype, device=hardware.device)
    image, kernel = a[None, None].permute(0, 3, 1, 2), b[:, :, None, None]
    blas, convolutions = ("cuBLAS", "cuDNN") if hardware.is_gpu else ("BLAS", "oneDNN")
    return {blas: lambda: a @ b, convolutions: lambda: F.conv2d(image, kernel)}


def fastest_matmul(seconds: dict[str, list[float]]) -> tuple[str, float]:
    """The library with the shortest median time for the reference product, and that time in seconds."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return min(medians.items(), key=lambda item: item[1])
