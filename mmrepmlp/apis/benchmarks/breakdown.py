# SPDX-License-Identifier: Apache-2.0
"""What the time of a forward pass is made of."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from mmrepmlp.apis.benchmarks.compare import gflop_per_image
from mmrepmlp.apis.benchmarks.measure import (
    SGEMM_SIDE,
    BenchmarkReport,
    environment,
    fastest_matmul,
    interleave,
    reference_matmuls,
)
from mmrepmlp.models import RepMLPNet

# Which part of the work an operator of torch does; all others prepare, allocate and look at tensors.
PARTS = {
    "products by oneDNN": ("mkldnn_convolution",),
    "products by BLAS": ("bmm", "mm", "addmm", "_slow_conv2d_forward"),
    "GELU": ("gelu",),
    "norm, gate, bias, shortcut": ("addcmul", "add", "add_", "mul", "clamp_min", "clamp_min_", "relu_", "sigmoid"),
    "copies between map and tiles": ("copy_", "cat", "index_select"),
    "averages": ("mean", "sum", "div_"),
}
REST = "overhead of the calls"
PART_OF = {f"aten::{operator}": part for part, operators in PARTS.items() for operator in operators}


@dataclass
class BreakdownMeasurement:
    """A forward pass of the deploy form and its parts.

    Attributes:
        batch: Number of images.
        height: Their height in pixels.
        width: Their width in pixels.
        milliseconds: Median time.
        products: The time in milliseconds that its floating point operations take at the rate of the yardstick, a
            large matrix product, measured in between.
        shares: What part of the time goes where, by name; they add up to 1.
    """

    batch: int
    height: int
    width: int
    milliseconds: float
    products: float
    shares: dict[str, float]


class BreakdownBenchmark(BenchmarkReport):
    """What forward passes are made of: rows of :class:`BreakdownMeasurement`."""

    def table(self) -> Table:
        """To print."""
        caption = (
            "ms: median of the whole. The parts are shares of it, by the profiler. at peak: the time that the same "
            f"arithmetic takes as one matrix product of side {SGEMM_SIDE}, measured in between."
        )
        table = self.empty_table(caption)
        table.add_column("batch, size", no_wrap=True)
        for row in self.rows:
            table.add_column(f"{row.batch}, {row.height}x{row.width}", justify="right", no_wrap=True)
        table.add_row("ms", *(f"{row.milliseconds:.1f}" for row in self.rows), end_section=True)
        for part in (*PARTS, REST):
            table.add_row(part, *(f"{row.shares[part]:.1%}" for row in self.rows), end_section=part == REST)
        table.add_row("at peak", *(f"{row.products / row.milliseconds:.1%}" for row in self.rows))
        return table

    def plot(self, path: str | Path) -> None:
        """Draw the parts as stacked bars, a bar for each pass, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 1.5 + 0.5 * len(self.rows)), layout="constrained")
        panel = figure.subplots()
        names = [f"batch {row.batch}, {row.height}x{row.width}" for row in self.rows]
        ends = [0.0] * len(self.rows)
        for part in (*PARTS, REST):
            widths = [100 * row.shares[part] for row in self.rows]
            panel.barh(names, widths, left=ends, label=part)
            ends = [end + width for end, width in zip(ends, widths)]
        panel.invert_yaxis()
        panel.set(xlabel="% of the time", xlim=(0, 100))
        figure.legend(loc="outside lower center", ncols=4)
        self.save_figure(figure, path)


@torch.inference_mode()
def benchmark_breakdown(
    arch: str = "B",
    img_size: int = 224,
    sizes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] = (1, 8),
    threads: int | None = None,
    dtype: str = "float32",
    repeats: int = 15,
) -> BreakdownBenchmark:
    """Find out what a forward pass of the deploy form is made of.

    Args:
        arch: Letter of the architecture. Default: B.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        sizes: Height and width of the images in pixels. Default: ``img_size``, square.
        batches: Numbers of images, each at each size. Default: (1, 8).
        threads: Threads to compute with; None for torch's choice. Default: None.
        dtype: Precision: float32, float64 or bfloat16. Default: float32.
        repeats: Counted calls for each figure. Default: 15.
    """
    if threads:
        torch.set_num_threads(threads)
    precision = getattr(torch, dtype)
    model = RepMLPNet(arch, img_size).to(precision).eval()
    model.switch_to_deploy()
    products = reference_matmuls(precision)
    rows = []
    for height, width in sizes or [(img_size, img_size)]:
        for batch in batches:
            x = torch.randn(batch, 3, height, width, dtype=precision)
            title = f"{arch}{img_size}, batch {batch}, {height}x{width} pixels"
            seconds = interleave({"model": lambda x=x: model(x), **products}, repeats, title)
            fastest = fastest_matmul({name: seconds[name] for name in products})[1]
            gflop = batch * gflop_per_image(model, x[:1])
            rows.append(
                BreakdownMeasurement(
                    batch=batch,
                    height=height,
                    width=width,
                    milliseconds=1e3 * statistics.median(seconds["model"]),
                    products=1e3 * gflop * 1e9 / (2 * SGEMM_SIDE**3) * fastest,
                    shares=shares_of_parts(model, x, repeats),
                )
            )
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", form="deploy form", dtype=dtype, repeats=repeats)
    return BreakdownBenchmark({**settings, **environment()}, rows)


def shares_of_parts(model: RepMLPNet, x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Which share of a model's time each part takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            model(x)
    times = Counter({part: 0.0 for part in (*PARTS, REST)})
    for event in profiler.key_averages():
        times[PART_OF.get(event.key, REST)] += event.self_cpu_time_total
    return {part: time / times.total() for part, time in times.items()}
