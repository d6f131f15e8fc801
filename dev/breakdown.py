# SPDX-License-Identifier: Apache-2.0
"""Break the time of a forward pass down by kind of operator, for images of any size."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from dev.command import make_parser, measure_and_report
from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.benchmark.hardware import Hardware
from mmrepmlp.verbs.benchmark.measure import SGEMM_SIDE, interleave, reference_matmuls
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.model import count_macs

# Operators of torch by part of the work; all others create, allocate and reshape tensors.
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


@torch.inference_mode()
def benchmark_breakdown(
    arch: str = "B",
    img_size: int = 224,
    sizes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] = (1, 8),
    dtype: str = "float32",
    repeats: int = 15,
    threads: int | None = None,
) -> BenchmarkReport:
    """Break the time of a forward pass of the deploy form down by kind of operator.

    Args:
        arch: Letter of the architecture. Default: B.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        sizes: Height and width of the images in pixels. Default: ``img_size``, square.
        batches: Batch sizes, each measured at each size. Default: (1, 8).
        dtype: Precision: float32, float64, bfloat16 or float16. Default: float32.
        repeats: Timed calls per measurement. Default: 15.
        threads: Number of threads. Default: torch's choice.

    Returns:
        A row for each size and batch size: median time, also of a megapixel; memory; ``peak``, the share of the time
        that the same arithmetic takes as one large matrix product, measured alongside; and the shares of the parts, by
        torch's profiler. All shares are in percent.
    """
    hardware = Hardware(threads=threads)
    hardware.prepare()
    precision = getattr(torch, dtype)
    model = RepMLPNet(arch, img_size).to(precision).eval()
    model.switch_to_deploy()
    products = reference_matmuls(precision)
    rows = []
    for height, width in sizes or [(img_size, img_size)]:
        for batch in batches:
            x = torch.randn(batch, 3, height, width, dtype=precision)
            call = partial(model, x)
            title = f"{arch}{img_size}, batch {batch}, {height}x{width} pixels"
            seconds = interleave({"model": call, **products}, repeats, title)
            fastest = min(statistics.median(seconds[name]) for name in products)
            median = statistics.median(seconds["model"])
            ideal = 2 * count_macs(model, x) / (2 * SGEMM_SIDE**3) * fastest
            shares = {name: 100 * share for name, share in profile_shares(call, repeats).items()}
            figures = dict(size=f"{height}x{width}", batch=batch, milliseconds=1e3 * median)
            megapixels = 1e-6 * batch * height * width
            figures["ms per megapixel"] = 1e3 * median / megapixels
            figures["MiB per megapixel"] = (hardware.peak_memory(call) or math.nan) / megapixels
            rows.append({**figures, "at peak": 100 * ideal / median, **shares})
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", form="deploy form", dtype=dtype, repeats=repeats)
    return BenchmarkReport({**settings, **hardware.environment()}, rows)


def profile_shares(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Fraction of the time of a call spent in each part, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            call()
    times = Counter({part: 0.0 for part in (*PARTS, REST)})
    for event in profiler.key_averages():
        times[PART_OF.get(event.key, REST)] += event.self_cpu_time_total
    return {part: time / times.total() for part, time in times.items()}


def square(side: str) -> tuple[int, int]:
    """Height and width of a square image."""
    return int(side), int(side)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--arch", choices=["T", "B", "D", "L"], help="default: B")
    parser.add_argument("--img-size", type=int, help="image size of one tile, pixels (default: 224)")
    parser.add_argument("--sizes", nargs="+", type=square, help="sides of square images, pixels (default: --img-size)")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes (default: 1 8)")
    parser.add_argument("--repeats", type=int, help="timed calls (default: 15)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32")
    parser.add_argument("--threads", type=int, help="threads (default: torch's choice)")
    measure_and_report(parser, benchmark_breakdown)


if __name__ == "__main__":
    main()
