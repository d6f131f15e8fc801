# SPDX-License-Identifier: Apache-2.0
"""Measure what options of a training cost in time and in memory: training steps of RepMLPNet on a CPU."""

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from mmengine.optim import build_optim_wrapper

from dev.command import make_parser, measure_and_report
from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.benchmark.hardware import Hardware, peak_resident_memory
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.benchmark.runtimes import STEP

# What differs from a plain training: arguments of the network, and over how many parts of the batch gradients add up.
VARIANTS: dict[str, tuple[dict, int]] = {
    "default": ({}, 1),
    "with_cp=True": (dict(with_cp=True), 1),
    "gradient_reparam=True": (dict(gradient_reparam=True), 1),
    "frozen_stages=2, norm_eval=True": (dict(frozen_stages=2, norm_eval=True), 1),
    "accumulative_counts=2": ({}, 2),
}


def make_step(name: str, arch: str | dict, img_size: int, batch: int) -> Callable[[], None]:
    """Return a training step of a variant, with AdamW and a group for each parameter as in the recipes."""
    settings, parts = VARIANTS[name]
    torch.manual_seed(0)
    model = RepMLPNet(arch, img_size, **settings).train()
    cfg = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=1e-6),
        accumulative_counts=parts,
        paramwise_cfg=dict(bypass_duplicate=False),
    )
    if settings.get("gradient_reparam"):
        cfg["constructor"] = "mmrepmlp.RepOptimizerConstructor"
    optimizer = build_optim_wrapper(model, cfg)
    images = torch.randn(batch, 3, img_size, img_size)

    def step() -> None:
        for part in images.chunk(parts):
            optimizer.update_params(model(part)[0].square().mean())

    return step


def measure_memory(name: str, arch: str | dict, img_size: int, batch: int, threads: int | None) -> float | None:
    """Return what two steps add to the resident memory in MiB; the second has the optimizer's state."""
    Hardware(threads=threads).prepare()
    step = make_step(name, arch, img_size, batch)
    return peak_resident_memory(lambda: (step(), step()))


def measure_costs(
    arch: str | dict = "T", img_size: int = 224, batch: int = 8, threads: int | None = None, repeats: int = 7
) -> BenchmarkReport:
    """Measure the time of interleaved training steps in one process, and the memory of each in a process of its own.

    Args:
        arch: Letter of the architecture, or its settings as a dict. Default: T.
        img_size: Height and width of the images in pixels. Default: 224.
        batch: Number of images of a step. Default: 8.
        threads: Number of threads. Default: torch's choice.
        repeats: Timed steps of each variant. Default: 7.
    """
    hardware = Hardware(threads=threads)
    hardware.prepare()
    memory = {}
    for name in VARIANTS:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            memory[name] = process.submit(measure_memory, name, arch, img_size, batch, threads).result()
    steps = {name: make_step(name, arch, img_size, batch) for name in VARIANTS}
    seconds = interleave(steps, repeats, "training steps", hardware)
    rows = [
        dict(
            model=name,
            task=STEP,
            batch=batch,
            milliseconds=1e3 * statistics.median(seconds[name]),
            peak_mib=memory[name],
        )
        for name in VARIANTS
    ]
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", dtype="float32", repeats=repeats)
    return BenchmarkReport({**settings, **hardware.environment()}, rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--arch", choices=["T", "B", "D", "L"], help="default: T")
    parser.add_argument("--img-size", type=int, help="pixels (default: 224)")
    parser.add_argument("--batch", type=int, help="images of a step (default: 8)")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--repeats", type=int, help="timed steps (default: 7)")
    measure_and_report(parser, measure_costs)


if __name__ == "__main__":
    main()
