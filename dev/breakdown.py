# SPDX-License-Identifier: Apache-2.0
"""Breakdown of the time of a forward pass by kind of operator."""

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.benchmark.hardware import CPU, Hardware
from mmrepmlp.verbs.benchmark.measure import SGEMM_SIDE, interleave, reference_matmuls
from mmrepmlp.verbs.benchmark.report import BenchmarkReport, environment_table
from mmrepmlp.verbs.model import count_macs

# Operators of torch by part of the work; all others create, allocate and reshape tensors.
PARTS = {
    "products by oneDNN": ("mkldnn_convolution", "cudnn_convolution"),
    "products by BLAS": ("bmm", "mm", "addmm", "_slow_conv2d_forward"),
    "GELU": ("gelu",),
    "norm, gate, bias, shortcut": ("addcmul", "add", "add_", "mul", "clamp_min", "clamp_min_", "relu_", "sigmoid"),
    "copies between map and tiles": ("copy_", "cat", "index_select"),
    "averages": ("mean", "sum", "div_"),
}
REST = "overhead of the calls"
ON_GPU = {"products by oneDNN": "products by cuDNN", "products by BLAS": "products by cuBLAS"}
PART_OF = {f"aten::{operator}": part for part, operators in PARTS.items() for operator in operators}


@dataclass
class BreakdownMeasurement:
    """Time of a forward pass of the deploy form, and its parts.

    Attributes:
        batch: Number of images.
        height: Their height in pixels.
        width: Their width in pixels.
        milliseconds: Median time.
        products: Time in milliseconds of its floating point operations at the rate of the reference, a large matrix
            product, measured alongside.
        shares: Fraction of the time of each part, by name; they sum to 1.
    """

    batch: int
    height: int
    width: int
    milliseconds: float
    products: float
    shares: dict[str, float]


class BreakdownBenchmark(BenchmarkReport):
    """A breakdown of forward passes: rows of :class:`BreakdownMeasurement`."""

    def table(self) -> Table:
        """The breakdown as a table to print."""
        caption = (
            "ms: median of the whole. The parts are shares of it, by the profiler. at peak: the time that the same "
            f"arithmetic takes as one matrix product of side {SGEMM_SIDE}, measured in between."
        )
        table = environment_table(self.environment, caption)
        table.add_column("batch, size", no_wrap=True)
        for row in self.rows:
            table.add_column(f"{row.batch}, {row.height}x{row.width}", justify="right", no_wrap=True)
        table.add_row("ms", *(f"{row.milliseconds:.1f}" for row in self.rows), end_section=True)
        for part in self.rows[0].shares:
            table.add_row(part, *(f"{row.shares[part]:.1%}" for row in self.rows), end_section=part == REST)
        table.add_row("at peak", *(f"{row.products / row.milliseconds:.1%}" for row in self.rows))
        return table


@torch.inference_mode()
def benchmark_breakdown(
    arch: str = "B",
    img_size: int = 224,
    sizes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] = (1, 8),
    dtype: str = "float32",
    repeats: int = 15,
    hardware: Hardware = CPU,
) -> BreakdownBenchmark:
    """Break the time of a forward pass of the deploy form down by kind of operator.

    Args:
        arch: Letter of the architecture. Default: B.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        sizes: Height and width of the images in pixels. Default: ``img_size``, square.
        batches: Batch sizes, each measured at each size. Default: (1, 8).
        dtype: Precision: float32, float64, bfloat16 or float16. Default: float32.
        repeats: Timed calls per measurement. Default: 15.
        hardware: Where and how to compute. Default: the CPU.

    Raises:
        MMRepMLPError: There is no such device.
    """
    hardware.prepare()
    precision = getattr(torch, dtype)
    model = hardware.place(RepMLPNet(arch, img_size).to(precision).eval())
    model.switch_to_deploy()
    products = reference_matmuls(precision, hardware)
    rows = []
    for height, width in sizes or [(img_size, img_size)]:
        for batch in batches:
            x = hardware.place(torch.randn(batch, 3, height, width, dtype=precision))
            call = hardware.calling(model, x)
            title = f"{arch}{img_size}, batch {batch}, {height}x{width} pixels"
            seconds = interleave({"model": call, **products}, repeats, title, hardware)
            fastest = min(statistics.median(seconds[name]) for name in products)
            gflop = 2e-9 * count_macs(model, x)
            rows.append(
                BreakdownMeasurement(
                    batch=batch,
                    height=height,
                    width=width,
                    milliseconds=1e3 * statistics.median(seconds["model"]),
                    products=1e3 * gflop * 1e9 / (2 * SGEMM_SIDE**3) * fastest,
                    shares=profile_shares(call, repeats, hardware),
                )
            )
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", form="deploy form", dtype=dtype, repeats=repeats)
    return BreakdownBenchmark({**settings, **hardware.environment()}, rows)


def profile_shares(call: Callable[[], object], repeats: int, hardware: Hardware) -> dict[str, float]:
    """Fraction of the time of a call spent in each part, by torch's profiler; on a GPU, of the time of its kernels."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if hardware.is_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(repeats):
            call()
    times = Counter({part: 0.0 for part in (*PARTS, REST)})
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:  # an operator; the kernels that it started are in its time
            time = event.self_device_time_total if hardware.is_gpu else event.self_cpu_time_total
            times[PART_OF.get(event.key, REST)] += time
    names = ON_GPU if hardware.is_gpu else {}
    return {names.get(part, part): time / times.total() for part, time in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--arch", choices=["T", "B", "D", "L"], help="default: B")
    parser.add_argument("--img-size", type=int, help="image size of one tile, pixels (default: 224)")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes (default: 1 8)")
    parser.add_argument("--repeats", type=int, help="timed calls (default: 15)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32")
    Console().print(benchmark_breakdown(**vars(parser.parse_args())).table())


if __name__ == "__main__":
    main()
