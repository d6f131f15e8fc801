# SPDX-License-Identifier: Apache-2.0
"""int8 quantization after training, with NNCF."""

import ctypes
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TypeVar

if find_spec("nncf") is None:
    raise ImportError("NNCF is not installed: pip install 'mmrepmlp[openvino]'")

import nncf
import onnx
import onnxscript
from torch import Tensor

Graph = TypeVar("Graph")
# ONNX Runtime has no fast product of several integer matrices, and NNCF no scales that its other products take.
FLOAT_IN_ONNX = ("MatMul", "Gemm")


def quantize_graph(
    graph: Graph,
    images: Sequence[Tensor],
    name: str,
    evaluate: Callable[[object], float] | None = None,
    max_drop: float | None = None,
) -> Graph:
    """Quantize a graph to int8: weights per channel, activations by their ranges on images.

    Args:
        graph: An OpenVINO model, or an ONNX graph, in which only convolutions are quantized.
        images: Batches to calibrate with, as the graph takes them.
        name: Name of the graph's input.
        evaluate: Returns the metric of an ONNX graph or a compiled OpenVINO model, the higher the better.
            Default: None, the metric is not considered.
        max_drop: Largest allowed drop of the metric; the layers that cost most stay in float until it does not drop
            further. Default: None.

    Returns:
        The int8 graph.
    """
    restore_stack = remember_signal_stack()
    logging.getLogger("nncf").setLevel(logging.ERROR)  # not set_log_level, which changes handlers of other loggers
    calibration = nncf.Dataset(list(images), lambda batch: {name: batch.numpy()})
    is_onnx = isinstance(graph, onnx.ModelProto)
    if is_onnx:  # NNCF looks for weights that are stored, not for their transposes
        graph = onnx.ModelProto.FromString(graph.SerializeToString())
        onnxscript.optimizer.fold_constants(graph, input_size_limit=2**31, output_size_limit=2**31)
    settings = dict(
        subset_size=len(images),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(types=list(FLOAT_IN_ONNX), validate=False) if is_onnx else None,
    )

    def measure(candidate: object, _: object) -> tuple[float, None]:
        restore_stack()  # an evaluation may end processes
        return evaluate(positive_axes(candidate) if is_onnx else candidate), None

    try:
        if evaluate is None:
            quantized = nncf.quantize(graph, calibration, **settings)
        else:
            quantized = nncf.quantize_with_accuracy_control(
                graph,
                calibration,
                calibration,  # layers are ranked by how much their rounding changes the outputs for these images
                measure,
                max_drop=max_drop,
                drop_type=nncf.DropType.ABSOLUTE,
                **settings,
            )
    finally:
        restore_stack()
    return positive_axes(quantized) if is_onnx else quantized


def remember_signal_stack() -> Callable[[], None]:
    """Remember the thread's alternate stack for signals, and return a function that restores it.

    NNCF creates and frees OpenVINO cores in any order, which leaves a stack that is freed:
    see :func:`mmrepmlp.export.openvino.core`.
    """
    libc, stack = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # more than a stack_t
    libc.sigaltstack(None, stack)
    return lambda: libc.sigaltstack(stack, None)


def positive_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the axes of scales positive, since not all of ONNX Runtime takes negative ones."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks |= {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.value_info, *inferred.input)}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and attribute.name == "axis" and attribute.i < 0:
                attribute.i += ranks[node.input[0]]
    return model
