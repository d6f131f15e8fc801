# SPDX-License-Identifier: Apache-2.0
"""Store the weights of a network that was trained with fake quantization as int8."""

from pathlib import Path

import numpy as np
import onnx
from onnx.numpy_helper import from_array, to_array

from mmrepmlp.quantization.grid import WEIGHT_LEVEL

QUANTIZABLE_OPERATORS = ("Conv", "MatMul", "Gemm")
VIEWS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def store_weights_as_int8(path: str | Path) -> int:
    """Store the weights of nodes with quantized inputs in an ONNX file as int8, with a scale per output.

    This is exact if the weights are multiples of their scales, as the conversion to deploy form makes them. Returns the
    number of weights stored as int8; 0 for a graph without quantization.
    """
    model = onnx.load(str(path))
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    dequantize_nodes = []
    for node in [node for node in graph.node if node.op_type in QUANTIZABLE_OPERATORS]:
        source = producers.get(viewed_tensor(node.input[0], producers))
        name = viewed_tensor(node.input[1], producers)
        if source is None or source.op_type != "DequantizeLinear" or name not in tensors:
            continue
        # The exporter transposes some of the square matrices over tiles: their outputs are their columns.
        transposed = node.op_type == "MatMul" and name == node.input[1]
        dequantize_nodes += int8_weight(graph, tensors.pop(name), transposed)
    if dequantize_nodes:
        nodes = [*dequantize_nodes, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        onnx.save(model, str(path))
    return sum(node.op_type == "DequantizeLinear" for node in dequantize_nodes)


def viewed_tensor(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """Return the name of the tensor that a tensor is a view of."""
    while name in producers and producers[name].op_type in VIEWS:
        name = producers[name].input[0]
    return name


def int8_weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, transposed: bool) -> list[onnx.NodeProto]:
    """Replace a weight of a graph by int8 values and scales. Returns the nodes that dequantize it."""
    name, weight = tensor.name, to_array(tensor)
    outputs_first = weight.swapaxes(-1, -2) if transposed else weight
    rows = outputs_first.reshape(-1, weight.shape[-1]) if weight.ndim == 3 else outputs_first
    # Zero rows need a positive scale as well.
    least = np.finfo(np.float32).tiny * WEIGHT_LEVEL
    scales = np.maximum(abs(rows).reshape(len(rows), -1).max(1), least) / WEIGHT_LEVEL
    multiples = rows / scales.reshape(-1, *[1] * (rows.ndim - 1))
    levels = multiples.round()
    if abs(multiples - levels).max() > 1e-3:
        raise ValueError(
            f"{name} is not a multiple of one int8 scale per output: it was not trained with fake quantization."
        )
    graph.initializer.remove(tensor)
    graph.initializer.append(from_array(levels.astype(np.int8), f"{name}_int8"))
    graph.initializer.append(from_array(scales.astype(np.float32), f"{name}_scales"))
    # Zero points of 0 are the default, but ONNX Runtime 1.23 does not run a Gemm without them.
    graph.initializer.append(from_array(np.zeros(len(scales), np.int8), f"{name}_zeros"))
    restored = name if weight.ndim != 3 else f"{name}_rows"
    inputs = [f"{name}_{part}" for part in ("int8", "scales", "zeros")]
    nodes = [onnx.helper.make_node("DequantizeLinear", inputs, [restored], axis=0)]
    if weight.ndim == 3:
        matrices = f"{name}_matrices" if transposed else name
        graph.initializer.append(from_array(np.array(outputs_first.shape, np.int64), f"{name}_shape"))
        nodes.append(onnx.helper.make_node("Reshape", [restored, f"{name}_shape"], [matrices]))
        if transposed:
            nodes.append(onnx.helper.make_node("Transpose", [matrices], [name], perm=[0, 2, 1]))
    return nodes
