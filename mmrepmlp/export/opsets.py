# SPDX-License-Identifier: Apache-2.0
"""Versions of ONNX's operators that torch's exporter does not offer."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnx.helper import get_attribute_value, make_attribute, make_node, make_opsetid
from onnx.inliner import inline_selected_functions
from onnx.numpy_helper import from_array, to_array
from onnx.version_converter import convert_version

EXPORTER_OPSETS = (18, 20)  # torch's exporter begins with 18; 20 is the first with GELU as an operator
SHAPES = ("allowzero", "num_outputs")  # attributes that only matter for shapes that torch's exporter does not write
OLDEST, NEWEST = 13, onnx.defs.onnx_opset_version()  # 13 is the first that quantizes per channel


def exporter_opset(opset: int) -> int:
    """Return the version in which to export a graph, for :func:`convert_opset` to convert it to another."""
    return max((version for version in EXPORTER_OPSETS if version <= opset), default=EXPORTER_OPSETS[0])


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """Convert a graph of torch's exporter to another version of ONNX's operators.

    onnx's converter makes newer versions. It lacks most conversions to older ones, which are made here: an operator
    that did not exist is replaced by those that define it; an input or attribute that an operator did not have is
    written in the form of that version.
    """
    (present,) = (entry.version for entry in model.opset_import if not entry.domain)
    if opset >= present:
        return convert_version(model, opset) if opset > present else model
    while newer := {node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, opset, node.domain)}:
        count = len(model.graph.node)
        model = inline_selected_functions(model, [("", name) for name in newer], inline_schema_functions=True)
        if len(model.graph.node) == count:
            raise ValueError(f"opset {opset} has no {', '.join(sorted(newer))}")
    constants = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = to_array(node.attribute[0].t)
    nodes = [node for newer in model.graph.node for node in to_older_nodes(newer, opset, constants)]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(make_opsetid("", opset))
    return model


def to_older_nodes(node: NodeProto, opset: int, constants: dict[str, np.ndarray]) -> Iterator[NodeProto]:
    """Convert a node to nodes that do the same in an older version."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    unknown = {a.name: get_attribute_value(a) for a in node.attribute if a.name not in schema.attributes}
    for name in unknown:
        node.attribute.remove(next(a for a in node.attribute if a.name == name))
    if node.op_type == "Shape" and unknown:
        yield from sliced_shape(node, unknown.get("start", 0), unknown.get("end", np.iinfo(np.int64).max))
        return
    if len(node.input) > schema.max_input and "axes" in schema.attributes and node.input[-1] in constants:
        node.attribute.append(make_attribute("axes", constants[node.input.pop()].tolist()))
    present = onnx.defs.get_schema(node.op_type, EXPORTER_OPSETS[-1], node.domain).attributes
    lost = [
        n for n, value in unknown.items() if n not in SHAPES and value != get_attribute_value(present[n].default_value)
    ]
    if lost or len(node.input) > schema.max_input:
        raise ValueError(f"opset {opset} has no {node.op_type} with {', '.join(lost) or 'these inputs'}")
    yield node


def sliced_shape(node: NodeProto, start: int, end: int) -> Iterator[NodeProto]:
    """Yield nodes for the shape of a tensor from one dimension up to, not including, another."""
    (out,) = node.output
    bounds = {f"{out}_start": start, f"{out}_end": end}
    for name, value in bounds.items():
        yield make_node("Constant", [], [name], value=from_array(np.array([value])))
    yield make_node("Shape", node.input, [f"{out}_shape"])
    yield make_node("Slice", [f"{out}_shape", *bounds], [out])
