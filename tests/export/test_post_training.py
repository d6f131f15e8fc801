# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import onnx
import openvino
import pytest
import torch

from mmrepmlp.export import OnnxNetwork, export_onnx
from mmrepmlp.export.openvino import OpenVinoNetwork
from mmrepmlp.export.post_training import quantize_graph
from tests.export.conftest import random_network

pytestmark = pytest.mark.slow


RUNTIMES = {  # how a graph is read, and an int8 one run
    "openvino": (openvino.convert_model, lambda graph: OpenVinoNetwork(graph, "int8")),
    "onnxruntime": (lambda path: onnx.load(str(path)), OnnxNetwork),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "network.onnx"
    export_onnx(random_network(out_indices=(1,)), path, size=(64, 64), batch=2, dynamic=())
    return path


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def quantized(source, images) -> dict:
    """The int8 graph of each runtime."""
    return {name: quantize_graph(read(source), images, "images") for name, (read, _) in RUNTIMES.items()}


def loss(actual, expected):
    return ((actual[0] - expected[0]).square().mean() / expected[0].var()).item()


def test_openvino_computes_products_and_convolutions_in_int8(source, images, quantized):
    network = OpenVinoNetwork(quantized["openvino"], "int8")
    assert 0 < loss(network(images[0]), OnnxNetwork(source)(images[0])) < 0.05
    computed = Counter()
    for node in network.compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        computed[str(info["layerType"].value), str(info["primitiveType"].value).rpartition("_")[2]] += 1
    products = {kind: number for (kind, precision), number in computed.items() if precision == "I8"}
    assert products["Convolution"] == 6 and products["FullyConnected"] >= 2


def test_onnx_has_int8_convolutions_with_a_scale_for_each_channel(source, images, quantized):
    graph = quantized["onnxruntime"]
    makers = {name: node for node in graph.graph.node for name in node.output}
    sizes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        weight = makers.get(node.input[1]) if node.op_type in ("Conv", "MatMul", "Gemm") else None
        if node.op_type == "Conv":
            (axis,) = (attribute.i for attribute in weight.attribute if attribute.name == "axis")
            assert weight.op_type == "DequantizeLinear" and axis == 0 and sizes[weight.input[1]][0] > 1
        elif node.op_type in ("MatMul", "Gemm"):
            assert weight is None or weight.op_type != "DequantizeLinear"
    assert 0 < loss(OnnxNetwork(graph)(images[0]), OnnxNetwork(source)(images[0])) < 0.05


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_stay_in_float_until_the_metric_is_kept(source, images, quantized, runtime):
    read, load = RUNTIMES[runtime]
    expected = OnnxNetwork(source)(images[0])
    seen = []

    def evaluate(candidate):
        seen.append(100 - 100 * loss(load(candidate)(images[0]), expected))
        return seen[-1]

    full = loss(load(quantized[runtime])(images[0]), expected)
    kept = quantize_graph(read(source), images, "images", evaluate, max_drop=50 * full)
    assert loss(load(kept)(images[0]), expected) <= full / 2 and len(seen) > 2
