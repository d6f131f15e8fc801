# SPDX-License-Identifier: Apache-2.0
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from mmrepmlp.export.int8_weights import store_weights_as_int8

STEPS = np.array([[0.25], [0.5]], np.float32)  # one for each output of the weight
WEIGHT = STEPS * np.array([[127, -3, 0], [5, 127, -64]], np.float32)
IMAGE = np.array([[0.5, -1.0, 2.0]], np.float32)


def write_graph(path, weight):
    """A product of an input, rounded to int8, with a weight."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["rounded"]),
        helper.make_node("Gemm", ["rounded", "weight"], ["y"], transB=1),
    ]
    tensors = dict(step=np.float32(0.5), zero=np.int8(0), weight=weight)
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
        [from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


def product(path):
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": IMAGE})[0]


def test_multiples_of_a_step_for_each_output_lose_nothing(tmp_path):
    path = write_graph(tmp_path / "graph.onnx", WEIGHT)
    expected = product(path)
    assert store_weights_as_int8(path) == 1
    np.testing.assert_array_equal(product(path), expected)
    tensors = {tensor.name: to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    assert "weight" not in tensors and tensors["weight_int8"].dtype == np.int8
    np.testing.assert_array_equal(tensors["weight_scales"], STEPS[:, 0])


def test_a_weight_that_is_no_multiple_is_refused(tmp_path):
    path = write_graph(tmp_path / "graph.onnx", WEIGHT + np.float32([[0, 0.1, 0], [0, 0, 0]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="weight is not a multiple of one int8 scale per output"):
        store_weights_as_int8(path)
    assert path.read_bytes() == before
