# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of models side by side, in one process, on the CPU."""

import ctypes
import gc
import json
import platform
import statistics
import time
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SGEMM_SIDE = 2048


@dataclass
class Measurement:
    """One row of a benchmark.

    Attributes:
        model: Whose implementation, or ``sgemm`` for the yardstick, a matrix product.
        task: ``training form`` or ``deploy form`` for a forward pass, the name of a runtime for one of the deploy form
            in it, ``training step``, or the library that computes the yardstick.
        batch: Number of images; None for the yardstick.
        milliseconds: Median time of a call.
        speedup: How many times as fast as the row that it is compared with; None for the yardstick.
        gflops: Rate at the operations of the deploy form's forward pass; None for a training step.
        sgemm_share: That rate over the machine's for a matrix product, measured in between.
        error: Largest difference of the output from that of mmpretrain's training form, over its largest value; None
            for the latter itself, for networks that differ, and for a training step.
        peak_mib: Growth of the process's resident memory during a call; None where it cannot be measured.
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
    """The rows of a benchmark and what they were measured on."""

    environment: dict[str, object]
    rows: list

    def save_json(self, path: str | Path) -> None:
        """Write environment and rows as JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def empty_table(self, caption: str | None = None) -> Table:
        """A table without columns, headed by the environment."""
        return Table(
            title="\n".join(f"{name}: {value}" for name, value in self.environment.items()),
            title_justify="left",
            caption=caption,
            caption_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
        )

    def save_figure(self, figure: "Figure", path: str | Path) -> None:
        """Write a picture of the rows as PNG, headed by what was measured."""
        figure.suptitle(f"{self.environment['arch']}, {self.environment['threads']} threads")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


class Benchmark(BenchmarkReport):
    """Rows of :class:`Measurement`."""

    def table(self) -> Table:
        """To print."""
        caption = (
            "ms: median. ratio: speed over mmpretrain's at the same task. sgemm: share of the rate of a matrix product "
            f"of side {SGEMM_SIDE}, measured in between, by the faster of torch's two libraries. MiB: what a call adds "
            "to the resident memory at its peak. error: largest difference from the output of mmpretrain's training "
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
        """Draw the times of one image as bars, a panel for each number of images, as PNG."""
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


def environment() -> dict[str, object]:
    """What figures depend on: processor, threads, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return dict(
        processor=names[0] if names else platform.processor() or platform.machine(),
        vectors=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def interleave(functions: dict[str, Callable[[], object]], repeats: int, title: str = "") -> dict[str, list[float]]:
    """Time functions in turn, again and again, so that a machine's drift meets all of them alike.

    Args:
        functions: What to call, by name. Each is called once before, uncounted.
        repeats: Number of counted calls of each.
        title: What the progress bar says.

    Returns:
        The seconds of each call, by name.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in track(range(repeats), description=title, transient=True):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def reference_matmuls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A square matrix product, the yardstick, by each library that torch computes one with.

    Which is the faster depends on the processor: of oneDNN and the BLAS that torch was built with, often MKL, one may
    have half the rate of the other.
    """
    a, b = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE, dtype=dtype)
    image, kernel = a[None, None].permute(0, 3, 1, 2), b[:, :, None, None]
    return {"BLAS": lambda: a @ b, "oneDNN": lambda: F.conv2d(image, kernel)}


def fastest_matmul(seconds: dict[str, list[float]]) -> tuple[str, float]:
    """The library whose median time for the yardstick is the shortest, and that time in seconds."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return min(medians.items(), key=lambda item: item[1])


def peak_memory(function: Callable[[], object]) -> float | None:
    """How far a call raises the resident memory of this process, in MiB.

    Counts what a library allocates past torch as well. Linux only: elsewhere the result is None.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    function()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        reset.write_text("5")  # sets the high-water mark to what is resident now
    except OSError:
        return None

    def resident(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before = resident("VmRSS")
    function()
    return (resident("VmHWM") - before) / 1024
