# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import onnx
import pytest
import torch
from onnx.numpy_helper import to_array

from mmrepmlp.export import OnnxNetwork, export_onnx
from mmrepmlp.export.int8_weights import QUANTIZABLE_OPERATORS
from mmrepmlp.export.static_quantization import SCALES_OF_OUTPUTS, quantize_onnx, rank_nodes
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY
from tests.helpers import randomize


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    backbone = randomize(RepMLPNet(TINY, img_size=64), torch.Generator().manual_seed(0), spread=0.1)
    path = tmp_path_factory.mktemp("float") / "network.onnx"
    export_onnx(backbone, path, size=(64, 64))
    return path


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)]


def initializers(path):
    return {tensor.name: to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def test_products_are_int8_and_weights_lie_on_a_grid_of_each_output(source, batches, tmp_path):
    out = tmp_path / "int8.onnx"
    quantize_onnx(source, out, batches)
    graph, values = onnx.load(str(out)).graph, initializers(out)
    makers = {name: node for node in graph.node for name in node.output}
    floats = initializers(source)
    products = [node for node in graph.node if node.op_type in QUANTIZABLE_OPERATORS]
    assert len(products) == 5 + 24
    compared = 0
    for node in products:
        dequantize = makers[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        stored, scale = values[dequantize.input[0]], values[dequantize.input[1]]
        axis = {a.name: a.i for a in dequantize.attribute}.get("axis")
        shape = [1] * stored.ndim
        if SCALES_OF_OUTPUTS or node.op_type != "MatMul":
            assert axis == (2 if node.op_type == "MatMul" else 0)
            shape[axis] = -1
        assert stored.dtype == "int8" and scale.size == (stored.shape[axis] if -1 in shape else 1)
        restored = stored * scale.reshape(shape)
        name = dequantize.input[0].removesuffix("_quantized")
        if name in floats:
            compared += 1
            assert (abs(restored - floats[name]) <= scale.reshape(shape) / 2 * 1.001).all()
    errors = [
        (a - e).abs().max() / e.abs().max()
        for a, e in zip(OnnxNetwork(out)(batches[0]), OnnxNetwork(source)(batches[0]))
    ]
    assert 0 < max(errors) < 0.1
    assert compared > 20
    assert out.stat().st_size < source.stat().st_size


def test_nodes_are_ranked_by_what_they_lose_and_stay_float_on_request(source, batches, tmp_path):
    ranked = rank_nodes(source, batches)
    losses = [loss for _, loss in ranked]
    assert len(ranked) == 5 + 24 and losses == sorted(losses, reverse=True) and losses[-1] >= 0 < losses[0]
    worst = [name for name, _ in ranked[:3]]
    quantize_onnx(source, tmp_path / "mixed.onnx", batches, keep_float=worst)
    quantize_onnx(source, tmp_path / "int8.onnx", batches)
    graph = onnx.load(str(tmp_path / "mixed.onnx")).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    kept = {node.name for node in graph.node if node.op_type in QUANTIZABLE_OPERATORS and node.input[1] not in makers}
    assert kept == set(worst)
    assert Counter(makers.values())["DequantizeLinear"]
    expected = OnnxNetwork(source)(batches[0])[0]
    mixed, full = (OnnxNetwork(tmp_path / f"{name}.onnx")(batches[0])[0] for name in ("mixed", "int8"))
    assert (mixed - expected).square().mean() < (full - expected).square().mean()
