# SPDX-License-Identifier: Apache-2.0
"""Weights of a network that was trained with fake quantization, stored as the int8 that they are."""

from pathlib import Path

import numpy as np
import onnx
from onnx.numpy_helper import from_array, to_array

from mmrepmlp.quantization.grid import WEIGHT_LEVEL

QUANTIZABLE_OPERATORS = ("Conv", "MatMul", "Gemm")
VIEWS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def store_weights_as_int8(path: str | Path) -> int:
    """Store the weights of products whose input is rounded as int8 and a step for each output, in place.

    They have to be multiples of these steps, as the conversion to deploy form leaves them, so that nothing is lost.

    Args:
        path: An ONNX file.

    Returns:
        How many weights are int8 now: none, in a graph that rounds nothing.

    Raises:
        ValueError: A weight is not a multiple of its steps.
    """
    model = onnx.load(str(path))
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    prologue = []
    for node in [node for node in graph.node if node.op_type in QUANTIZABLE_OPERATORS]:
        source = makers.get(origin(node.input[0], makers))
        name = origin(node.input[1], makers)
        if source is None or source.op_type != "DequantizeLinear" or name not in tensors:
            continue
        # The exporter has turned some of the square matrices over tiles around: their outputs are their columns.
        turned = node.op_type == "MatMul" and name == node.input[1]
        prologue += int8_weight(graph, tensors.pop(name), turned)
    if prologue:
        nodes = [*prologue, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        onnx.save(model, str(path))
    return sum(node.op_type == "DequantizeLinear" for node in prologue)


def origin(name: str, makers: dict[str, onnx.NodeProto]) -> str:
    """The tensor that a tensor is another view of."""
    while name in makers and makers[name].op_type in VIEWS:
        name = makers[name].input[0]
    return name


def int8_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, turned: bool) -> list[onnx.NodeProto]:
    """Replace a weight among a graph's tensors by int8 and steps. Returns the nodes that restore it."""
    name, weight = tensor.name, to_array(tensor)
    outputs_first = weight.swapaxes(-1, -2) if turned else weight
    rows = outputs_first.reshape(-1, weight.shape[-1]) if weight.ndim == 3 else outputs_first
    # Zero rows have a step as well.
    steps = np.maximum(abs(rows).reshape(len(rows), -1).max(1), np.finfo(np.float32).tiny * WEIGHT_LEVEL) / WEIGHT_LEVEL
    multiples = rows / steps.reshape(-1, *[1] * (rows.ndim - 1))
    levels = multiples.round()
    if abs(multiples - levels).max() > 1e-3:
        raise ValueError(f"{name} is no multiple of {WEIGHT_LEVEL} steps for each output: it was not trained for int8.")
    graph.initializer.remove(tensor)
    graph.initializer.append(from_array(levels.astype(np.int8), f"{name}_int8"))
    graph.initializer.append(from_array(steps.astype(np.float32), f"{name}_steps"))
    restored = name if weight.ndim != 3 else f"{name}_rows"
    nodes = [onnx.helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_steps"], [restored], axis=0)]
    if weight.ndim == 3:
        matrices = f"{name}_matrices" if turned else name
        graph.initializer.append(from_array(np.array(outputs_first.shape, np.int64), f"{name}_shape"))
        nodes.append(onnx.helper.make_node("Reshape", [restored, f"{name}_shape"], [matrices]))
        if turned:
            nodes.append(onnx.helper.make_node("Transpose", [matrices], [name], perm=[0, 2, 1]))
    return nodes
