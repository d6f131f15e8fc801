# SPDX-License-Identifier: Apache-2.0
"""Run a network in eager PyTorch, compiled, and in ONNX Runtime."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

Call = Callable[[], object]


def in_eager(network: nn.Module, x: Tensor) -> Call:
    """A forward pass in eager PyTorch."""
    return lambda: network(x)


def in_compiled(network: nn.Module, x: Tensor) -> Call:
    """A forward pass through torch.compile."""
    compiled = torch.compile(network)
    return lambda: compiled(x)


def in_onnxruntime(network: nn.Module, x: Tensor) -> Call:
    """A forward pass of the exported network in ONNX Runtime, for images of this shape."""
    from mmrepmlp.export import OnnxNetwork, export_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        export_onnx(network, path, size=tuple(x.shape[2:]), batch=len(x), dynamic=(), deploy=False)
        exported = OnnxNetwork(path)
    return lambda: exported(x)


RUNTIMES = dict(eager=in_eager, compiled=in_compiled, onnxruntime=in_onnxruntime)


def runtime_calls(networks: dict[str, nn.Module], runtimes: Sequence[str], x: Tensor) -> dict[tuple[str, str], Call]:
    """Forward passes of networks in deploy form in several runtimes.

    Args:
        networks: The networks, by name.
        runtimes: Names from :data:`RUNTIMES`.
        x: Images, shape (N, C, H, W), float32.

    Returns:
        Functions to call, by names of network and runtime.
    """
    return {
        (name, runtime): torch.inference_mode()(RUNTIMES[runtime](network, x))
        for runtime in runtimes
        for name, network in networks.items()
    }
