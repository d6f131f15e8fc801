# SPDX-License-Identifier: Apache-2.0
"""Graphs in OpenVINO."""

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

if find_spec("openvino") is None:
    raise ImportError("OpenVINO is not installed: pip install 'mmrepmlp[openvino]'")

import openvino

from .network import BatchedGraph

# OpenVINO's names of the capabilities of a processor that make a precision fast.
CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}


class OpenVinoNetwork(BatchedGraph):
    """A graph as a module, run by OpenVINO on the CPU in as many threads as torch has.

    Args:
        graph: Path of an ``.xml`` or ``.onnx`` file, or an OpenVINO model, compiled or not.
        precision: ``float32``, ``bfloat16`` or ``int8``; the last for graphs that are quantized already.
            Default: ``float32``.
    """

    def __init__(self, graph: str | Path | openvino.Model | openvino.CompiledModel, precision: str = "float32") -> None:
        super().__init__()
        if not isinstance(graph, openvino.CompiledModel):
            graph = compile_graph(graph, precision, torch.get_num_threads())
        self.compiled = graph
        number = graph.input(0).partial_shape[0]
        self.batch = number.get_length() if number.is_static else None

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the graph once."""
        try:
            outputs = self.compiled([images.detach().contiguous().numpy()])
        except RuntimeError as error:
            expected = self.compiled.input(0).partial_shape
            raise ValueError(f"The graph takes images of shape {expected}, not {list(images.shape)}.") from error
        return tuple(torch.from_numpy(outputs[output].copy()) for output in self.compiled.outputs)


@cache
def core() -> openvino.Core:
    """Return the only core of this process, which is kept until the process ends.

    A core installs an alternate stack for signals, and restores the previous one when it is freed. If the lifetimes of
    two cores overlap, the second restores a stack that the first has freed, and the next signal, such as Ctrl-C or the
    end of a data loader's worker, ends the process.
    """
    return openvino.Core()


def compile_graph(graph: str | Path | openvino.Model, precision: str, threads: int) -> openvino.CompiledModel:
    """Compile a graph for the CPU."""
    if not isinstance(graph, openvino.Model) and not Path(graph).is_file():
        raise FileNotFoundError(f"{graph} does not exist. Export it with mmrepmlp deploy.")
    # By default, OpenVINO uses bfloat16 if the processor has it; other processors emulate a requested bfloat16, ten
    # times slower than float32.
    hint = "bf16" if precision == "bfloat16" and is_fast_here(precision) else "f32"
    if precision == "bfloat16" and hint == "f32":
        print_log("This processor has no instructions for bfloat16: computed in float32.", "current", logging.WARNING)
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    try:
        graph = graph if isinstance(graph, openvino.Model) else core().read_model(str(graph))
        if any(side.is_dynamic for parameter in graph.inputs for side in list(parameter.partial_shape)[1:]):
            settings["CPU_RUNTIME_CACHE_CAPACITY"] = "0"  # else it keeps buffers for each size that it has seen
        return core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise ValueError(f"{graph} is not a graph that OpenVINO can run: {str(error).strip()}") from error


def is_fast_here(precision: str) -> bool:
    """Whether this machine's processor has instructions for a precision."""
    return CAPABILITIES[precision] in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
