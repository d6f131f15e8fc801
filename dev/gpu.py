# SPDX-License-Identifier: Apache-2.0
"""Measure training steps and the deploy form on a GPU, beside mmpretrain's network, and what a step is made of.

Writes gpu_forms.json, gpu_steps.json, gpu_variants.json and gpu_kernels.json. Takes less than ten minutes on one card.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.repmlpnet.local import METHODS, SetConv2d
from mmrepmlp.verbs.benchmark.benchmark import benchmark
from mmrepmlp.verbs.benchmark.hardware import Hardware
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.benchmark.runtimes import Call, Workload, in_training_step

NORMS = {"torch": "BN", "parallel": "mmrepmlp.ParallelBatchNorm2d"}
# What of a card a precision uses, by name.
PRECISIONS = {
    "float32": {},
    "TF32": dict(tf32=True),
    "float16": dict(tf32=True, autocast="float16"),
    "bfloat16": dict(tf32=True, autocast="bfloat16"),
}
KERNELS = 10


def measure_gpu(
    out: str | Path,
    arch: str | dict = "B",
    img_size: int = 224,
    batches: Sequence[int] = (1, 8, 64),
    repeats: int = 10,
    device: str = "cuda",
) -> list[BenchmarkReport]:
    """Measure on a GPU, or to try it out on a CPU.

    Args:
        out: Folder for the results.
        arch: Letter of the architecture, or its settings. Default: B.
        img_size: Height and width of the images in pixels. Default: 224.
        batches: Batch sizes of the deploy form; training steps have the last one. Default: 1, 8, 64.
        repeats: Timed calls of each network. Default: 10.
        device: Where to compute. Default: cuda.

    Returns:
        The deploy form in eager mode and compiled, by precision and batch size; training steps by precision; training
        steps by norm and by method of the local perceptron; the kernels that take longest in a training step.
    """
    is_gpu = torch.device(device).type == "cuda"
    precisions = {name: how for name, how in PRECISIONS.items() if is_gpu or "tf32" not in how}
    common = dict(against="mmpretrain", arch=arch, img_size=img_size, device=device, repeats=repeats)
    reports = {"forms": [], "steps": []}
    for name, how in precisions.items():
        forms = benchmark(**common, batches=batches, **how)
        step = benchmark(**common, batches=batches[-1:], training_step=True, **how)
        for kind, report in (("forms", forms), ("steps", step)):
            reports[kind].append(with_precision(report, name))
    compiled = benchmark(**common, batches=batches, runtimes=("eager", "compiled"))
    reports["forms"].append(with_precision(compiled, "float32"))
    images = torch.randn(batches[-1], 3, img_size, img_size)
    reports["variants"], reports["kernels"] = [], []
    for name, how in precisions.items():
        hardware = Hardware(device, **how)
        hardware.prepare()
        environment = {"arch": f"RepMLPNet-{arch}{img_size}", "repeats": repeats, **hardware.environment()}
        rows = measure_variants(arch, img_size, images, repeats, hardware)
        reports["variants"].append(with_precision(BenchmarkReport(environment, rows), name))
        rows = list_kernels(arch, img_size, images, hardware)
        reports["kernels"].append(with_precision(BenchmarkReport(environment, rows), name))
    Path(out).mkdir(parents=True, exist_ok=True)
    merged = []
    for kind, parts in reports.items():
        environment = {name: value for name, value in parts[0].environment.items() if name not in ("tf32", "dtype")}
        merged.append(BenchmarkReport(environment, [row for part in parts for row in part.rows]))
        merged[-1].save_json(Path(out, f"gpu_{kind}.json"))
    return merged


def with_precision(report: BenchmarkReport, name: str) -> BenchmarkReport:
    """A report with the name of the precision in its rows, without the reference products."""
    rows = [{"precision": name, **row} for row in report.rows if row["model"] != "sgemm"]
    return BenchmarkReport(report.environment, rows)


def measure_variants(
    arch: str | dict, img_size: int, images: torch.Tensor, repeats: int, hardware: Hardware
) -> list[dict[str, object]]:
    """Time training steps with each norm and each method of the local perceptron, in interleaved calls."""
    images = hardware.place(images)
    calls, tried = {}, {}
    for norm, kind in NORMS.items():
        network = hardware.place(RepMLPNet(arch, img_size, norm_cfg=dict(type=kind)))
        step = training_step(network, images, hardware)
        for method in METHODS:
            calls[norm, method] = with_method(step, method)
    for key, call in calls.items():
        try:
            call()
            tried[key] = call
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    seconds = interleave(tried, repeats, "norms and methods", hardware)
    return [
        dict(
            model="mmrepmlp",
            norm=norm,
            method=method,
            milliseconds=1e3 * statistics.median(seconds[norm, method]) if (norm, method) in tried else None,
            peak_mib=hardware.peak_memory(tried[norm, method]) if (norm, method) in tried else None,
            reason=None if (norm, method) in tried else "out of memory",
        )
        for norm, method in calls
    ]


def list_kernels(arch: str | dict, img_size: int, images: torch.Tensor, hardware: Hardware) -> list[dict[str, object]]:
    """The kernels that take longest in a training step, on a CPU the operators, with their share of its time in
    percent."""
    step = training_step(hardware.place(RepMLPNet(arch, img_size)), hardware.place(images), hardware)
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if hardware.is_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        if hardware.is_gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if hardware.is_gpu else DeviceType.CPU
    times = {
        event.key: event.self_device_time_total if hardware.is_gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
        if event.device_type == kind
    }
    total = sum(times.values())
    longest = sorted(times, key=times.get, reverse=True)[:KERNELS]
    return [dict(model="mmrepmlp", kernel=name, share=100 * times[name] / total) for name in longest]


def training_step(network: nn.Module, images: torch.Tensor, hardware: Hardware) -> Call:
    """A training step of a network."""
    return in_training_step(Workload(network, network, images, Path(), hardware))


def with_method(call: Call, method: str) -> Call:
    """A call while the local perceptrons are computed by a method."""

    def run() -> None:
        with patch.object(SetConv2d, "method", method):
            call()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--out", default="docs/results", help="folder for the results (default: docs/results)")
    parser.add_argument("--repeats", type=int, help="timed calls of each network (default: 10)")
    parser.add_argument("--device", help="default: cuda")
    for report in measure_gpu(**vars(parser.parse_args())):
        Console().print(report.table())


if __name__ == "__main__":
    main()
