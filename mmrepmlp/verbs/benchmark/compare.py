# SPDX-License-Identifier: Apache-2.0
"""Benchmark this package's RepMLPNet against mmpretrain's."""

import copy
import statistics
from collections.abc import Callable, Sequence

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPBlock, RepMLPNet
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.benchmark.hardware import CPU, Hardware
from mmrepmlp.verbs.benchmark.measure import (
    SGEMM_SIDE,
    Benchmark,
    Measurement,
    fastest_matmul,
    interleave,
    reference_matmuls,
)

OURS, THEIRS = "mmrepmlp", "mmpretrain"
# Networks that compute as the deploy form does while they train, by their differences from ours.
SINGLE_LAYER = {
    "gradient_reparam": dict(gradient_reparam=True),
    "no locality": dict(reparam_conv_kernels=None),
}
TRAINING, DEPLOY, STEP = "training form", "deploy form", "training step"


def benchmark_repmlpnet(
    arch: str | dict = "B",
    img_size: int = 224,
    batches: Sequence[int] = (1, 8),
    dtype: str = "float32",
    repeats: int = 15,
    training_step: bool = False,
    hardware: Hardware = CPU,
) -> Benchmark:
    """Benchmark this package's RepMLPNet against mmpretrain's with the same weights, in interleaved calls.

    Args:
        arch: Letter of the architecture, or its settings as a dict. Default: B.
        img_size: Height and width of the images in pixels. Default: 224.
        batches: Batch sizes. Default: (1, 8).
        dtype: Precision: float32, float64, bfloat16 or float16. Default: float32.
        repeats: Timed calls of each model. Default: 15.
        training_step: Whether to measure whole training steps (forward, backward, AdamW) instead of forward passes,
            also those of networks that train in the structure of the deploy form. Default: False.
        hardware: Where and how to compute. Default: the CPU.

    Returns:
        Medians and peak memory. Speed-ups are relative to mmpretrain's row of the same task.

    Raises:
        ImportError: mmpretrain is not installed.
        MMRepMLPError: The outputs of the two models differ, or there is no such device.
    """
    hardware.prepare()
    precision = getattr(torch, dtype)
    theirs, ours = map(hardware.place, build_pair(arch, img_size, precision))
    rows = []
    for batch in batches:
        x = hardware.place(torch.randn(batch, 3, img_size, img_size, dtype=precision))
        make_calls = training_calls if training_step else forward_calls
        calls = make_calls(theirs, ours, x, hardware)
        gflop = None if training_step else batch * gflop_per_image(ours, x[:1])
        errors = {} if training_step else check_agreement(calls, theirs, x, hardware)
        title = f"{arch}{img_size}, batch {batch}"
        rows += measure(calls, errors, batch, gflop, repeats, precision, title, hardware)
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", dtype=dtype, repeats=repeats)
    return Benchmark({**settings, **hardware.environment()}, rows)


def build_pair(arch: str | dict, img_size: int, dtype: torch.dtype) -> tuple[nn.Module, RepMLPNet]:
    """mmpretrain's network and ours in training form, with the same weights where the architecture allows."""
    from mmpretrain.models.backbones.repmlp import RepMLPNet as Theirs

    ours = RepMLPNet(arch, img_size)
    theirs = Theirs(ours.arch_settings, img_size, reparam_conv_kernels=(1, 3))
    norms = [module for module in theirs.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        theirs.train()(torch.randn(2, 3, img_size, img_size))  # non-trivial statistics, as after training
    for norm in norms:
        norm.momentum = 0.1
    if same_bottlenecks(ours):
        ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).eval(), ours.to(dtype).eval()


def same_bottlenecks(model: nn.Module) -> bool:
    """Whether mmpretrain builds the same network: it rounds bottlenecks to multiples of 8, which changes arch D."""
    return all(channels % 32 == 0 for channels in model.channels)


@torch.inference_mode()
def check_agreement(
    calls: dict[tuple[str, str], Callable[[], object]], theirs: nn.Module, x: Tensor, hardware: Hardware
) -> dict[tuple[str, str], float]:
    """Check that all calls compute the same outputs.

    Skipped if the bottlenecks differ, since the two models then have different weights.

    Returns:
        Largest difference of each call's output from that of mmpretrain's training form, over its largest value.

    Raises:
        MMRepMLPError: The outputs differ.
    """
    if not same_bottlenecks(theirs):
        return {}
    rounded = hardware.tf32 or hardware.autocast or x.dtype in (torch.bfloat16, torch.float16)
    tolerance = 0.1 if rounded else {torch.float64: 1e-10, torch.float32: 1e-5}[x.dtype]
    expected = theirs(x)[0]
    scale = expected.abs().max()
    errors = {name: ((call()[0] - expected).abs().max() / scale).item() for name, call in calls.items()}
    for (model, task), error in errors.items():
        if model == OURS and not error <= tolerance:
            raise MMRepMLPError(
                f"The outputs of the two models differ ({task}: {error:.1e} relative): their times are not comparable."
            )
    errors.pop((THEIRS, TRAINING), None)
    return errors


def convert(model: nn.Module) -> nn.Module:
    """A copy of a network in deploy form."""
    return switch_to_deploy(copy.deepcopy(model))


def forward_calls(
    theirs: nn.Module, ours: RepMLPNet, x: Tensor, hardware: Hardware
) -> dict[tuple[str, str], Callable[[], object]]:
    """Forward passes without gradients, by model and form."""
    calls = {}
    for name, model in ((THEIRS, theirs), (OURS, ours)):
        for form, network in ((TRAINING, model), (DEPLOY, convert(model))):
            calls[name, form] = torch.inference_mode()(hardware.calling(network, x))
    return calls


def training_calls(
    theirs: nn.Module, ours: RepMLPNet, x: Tensor, hardware: Hardware
) -> dict[tuple[str, str], Callable[[], object]]:
    """Training steps, by model."""
    models = {THEIRS: theirs, OURS: ours}
    for name, changes in SINGLE_LAYER.items():
        models[name] = hardware.place(ours.build_training_form(**changes).to(x.dtype))
    return {(name, STEP): make_training_step(model, x, hardware) for name, model in models.items()}


def make_training_step(model: nn.Module, x: Tensor, hardware: Hardware) -> Callable[[], None]:
    """A function that runs a training step: forward, backward, AdamW with a group a parameter, as in the recipes."""
    forward = hardware.calling(model, x)
    cfg = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-6), paramwise_cfg=dict(bypass_duplicate=False))
    if any(block.addition for block in model.modules() if isinstance(block, RepMLPBlock)):
        cfg["constructor"] = "mmrepmlp.RepOptimizerConstructor"
    optimizer = build_optim_wrapper(model, cfg).optimizer

    def run() -> None:
        model.train()
        optimizer.zero_grad()
        forward()[0].float().square().mean().backward()
        optimizer.step()

    return run


def gflop_per_image(model: RepMLPNet, x: Tensor) -> float:
    """Floating point operations of the deploy form's forward pass, in units of 1e9."""
    deployed = convert(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(x)
    return counter.get_total_flops() / 1e9


def measure(
    calls: dict[tuple[str, str], Callable[[], object]],
    errors: dict[tuple[str, str], float],
    batch: int,
    gflop: float | None,
    repeats: int,
    dtype: torch.dtype,
    title: str,
    hardware: Hardware,
) -> list[Measurement]:
    """Time the calls interleaved with the reference products (first rows), then their memory."""
    products = reference_matmuls(dtype, hardware)
    seconds = interleave({**calls, **products}, repeats, title, hardware)
    fastest = fastest_matmul({name: seconds[name] for name in products})[1]
    reference = 2 * SGEMM_SIDE**3 / fastest / 1e9
    medians = {call: statistics.median(seconds[call]) for call in calls}
    rows = [
        Measurement(
            model="sgemm",
            task=library,
            batch=None,
            milliseconds=statistics.median(seconds[library]) * 1e3,
            speedup=None,
            gflops=reference * fastest / statistics.median(seconds[library]),
            sgemm_share=fastest / statistics.median(seconds[library]),
            error=None,
            peak_mib=None,
        )
        for library in products
    ]
    for (model, task), median in medians.items():
        rate = None if gflop is None else gflop / median
        rows.append(
            Measurement(
                model=model,
                task=task,
                batch=batch,
                milliseconds=median * 1e3,
                speedup=medians[THEIRS, task] / median,
                gflops=rate,
                sgemm_share=None if rate is None else rate / reference,
                error=errors.get((model, task)),
                peak_mib=hardware.peak_memory(calls[model, task]),
            )
        )
    return rows
