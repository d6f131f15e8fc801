# SPDX-License-Identifier: Apache-2.0
"""Tasks to measure a network in: its two forms, training steps, and the deploy form in several runtimes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPBlock

from .hardware import Hardware

CALIBRATION_BATCHES = 3  # of random images, since only the speed of int8 is measured
TRAINING, DEPLOY, STEP = "training form", "deploy form", "training step"

Call = Callable[[], object]


@dataclass
class Workload:
    """Network and images to measure.

    Attributes:
        training: The network in training form.
        network: The network in deploy form.
        images: Images (N, C, H, W).
        folder: Empty folder for files of the runtimes.
        hardware: Hardware for PyTorch; other runtimes run on the CPU.
    """

    training: nn.Module
    network: nn.Module
    images: Tensor
    folder: Path
    hardware: Hardware

    @cached_property
    def onnx_file(self) -> Path:
        """ONNX file of the network for images of this shape, exported on first use."""
        from mmrepmlp.export.graph import export_graph
        from mmrepmlp.export.network import NamedOutputs

        if self.hardware.is_gpu:
            raise MMRepMLPError("runs on the CPU only; measure it with --device cpu.")
        number, _, height, width = self.images.shape
        path = self.folder / "network.onnx"
        export_graph(NamedOutputs(self.network).eval(), path, (number, height, width))
        return path


def in_eager(workload: Workload) -> Call:
    """Run in eager PyTorch."""
    return workload.hardware.calling(workload.network, workload.images)


def in_eager_bfloat16(workload: Workload) -> Call:
    """Run in eager PyTorch in bfloat16, as ``mmrepmlp test --dtype bfloat16`` does."""
    from mmrepmlp.engine.bfloat16 import NO_BFLOAT16, compute_in_bfloat16, has_bfloat16

    if not workload.hardware.is_gpu and not has_bfloat16():
        raise MMRepMLPError(f"{NO_BFLOAT16}.")
    network = compute_in_bfloat16(workload.network)
    return lambda: network(workload.images)


def in_training_step(workload: Workload) -> Call:
    """Run a training step: forward, backward, AdamW with a group for each parameter, as in the recipes."""
    model = workload.training
    forward = workload.hardware.calling(model, workload.images)
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


def in_compiled(workload: Workload, freezing: bool) -> Call:
    """Run in torch.compile for images of this shape.

    With ``freezing``, inductor treats weights as constants and stores them in oneDNN's layout.
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # Dynamo reads the global freezing setting while it traces, in the first call. The option marks another backend:
    # without it, dynamo would reuse the code compiled for the same network without freezing.
    compiled = torch.compile(workload.network, dynamic=False, options={"freezing": freezing})
    # Beyond its recompile limit, dynamo would run in eager mode, and the row would have the wrong name.
    with inductor.patch(freezing=freezing), dynamo.patch(fail_on_recompile_limit_hit=True):
        compiled(workload.images)
    return lambda: compiled(workload.images)


def in_aotinductor(workload: Workload) -> Call:
    """Run in an AOTInductor package, with weights as constants too."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    program = torch.export.export(workload.network, (workload.images,))
    path = str(workload.folder / "network.pt2")
    package = aoti_load_package(
        aoti_compile_and_package(program, package_path=path, inductor_configs={"freezing": True})
    )
    return lambda: package(workload.images)


def in_onnxruntime(workload: Workload) -> Call:
    """Run in ONNX Runtime."""
    from mmrepmlp.export import OnnxNetwork

    network = OnnxNetwork(workload.onnx_file)
    return lambda: network(workload.images)


def in_openvino(workload: Workload, precision: str) -> Call:
    """Run in OpenVINO; int8 is quantized after training."""
    from mmrepmlp.engine.bfloat16 import NO_BFLOAT16
    from mmrepmlp.export.openvino import OpenVinoNetwork, is_fast_here, openvino

    if precision == "bfloat16" and not is_fast_here(precision):
        raise MMRepMLPError(f"{NO_BFLOAT16}.")
    graph = openvino.convert_model(str(workload.onnx_file))
    if precision == "int8":
        from mmrepmlp.export.post_training import quantize_graph

        batches = [torch.randn_like(workload.images) for _ in range(CALIBRATION_BATCHES)]
        graph = quantize_graph(graph, batches, graph.input(0).any_name)
    network = OpenVinoNetwork(graph, precision)
    return lambda: network(workload.images)


RUNTIMES: dict[str, Callable[[Workload], Call]] = {
    "eager": in_eager,
    "eager bfloat16": in_eager_bfloat16,
    "compiled": partial(in_compiled, freezing=False),
    "frozen": partial(in_compiled, freezing=True),
    "aotinductor": in_aotinductor,
    "onnxruntime": in_onnxruntime,
    "openvino": partial(in_openvino, precision="float32"),
    "openvino bfloat16": partial(in_openvino, precision="bfloat16"),
    "openvino int8": partial(in_openvino, precision="int8"),
}
FORMS = {
    TRAINING: lambda workload: workload.hardware.calling(workload.training, workload.images),
    DEPLOY: in_eager,
}
TASKS = {**RUNTIMES, **FORMS, STEP: in_training_step}


def is_reduced(task: str) -> bool:
    """Whether a runtime computes in a lower precision than float32."""
    return task.endswith(("bfloat16", "int8"))
