# SPDX-License-Identifier: Apache-2.0
import numpy as np
import openvino
import pytest
import torch

from mmrepmlp.export import OnnxNetwork
from mmrepmlp.export.openvino import OpenVinoNetwork, compile_graph, is_fast_here


@pytest.fixture(scope="module", params=[("batch",), ()], ids=["any number", "two images"])
def graph(request, export_once):
    return export_once(*request.param).path


def test_runtimes_compute_what_the_network_does(backbone, graph, tmp_path):
    images = torch.randn(5, 3, 64, 64)
    openvino.save_model(openvino.convert_model(graph), tmp_path / "network.xml", compress_to_fp16=False)
    with torch.no_grad():
        expected = backbone(images)
    sources = (graph, tmp_path / "network.xml", openvino.convert_model(graph))
    for network in (OnnxNetwork(graph), *(OpenVinoNetwork(source) for source in sources)):
        for a, e in zip(network(images), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


def test_precision_is_as_asked_for(backbone, graph):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)[1]
    errors = {}
    for precision in ("float32", "bfloat16", "int8"):  # the last rounds what the graph rounds, which is nothing here
        network = OpenVinoNetwork(graph, precision)
        is_half = precision == "bfloat16" and is_fast_here(precision)
        hint = network.compiled.get_property("INFERENCE_PRECISION_HINT")
        assert hint == (openvino.Type.bf16 if is_half else openvino.Type.f32)
        errors[precision] = ((network(images)[1] - expected).abs().max() / expected.abs().max()).item()
    assert errors["int8"] == errors["float32"] < 1e-5
    assert not is_fast_here("bfloat16") or 1e-4 < errors["bfloat16"] < 0.1


def test_bfloat16_is_float32_on_a_processor_without_it(graph, monkeypatch):
    monkeypatch.setattr("mmrepmlp.export.openvino.is_fast_here", lambda precision: False)
    said = []
    monkeypatch.setattr("mmrepmlp.export.openvino.print_log", lambda text, *_: said.append(text))
    network = OpenVinoNetwork(graph, "bfloat16")
    assert network.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert "no instructions for bfloat16" in said[0]


def test_a_graph_of_any_size_keeps_nothing_for_each_size(graph, monkeypatch):
    compiled = []
    monkeypatch.setattr(openvino.Core, "compile_model", lambda self, model, device, settings: compiled.append(settings))
    x = openvino.opset13.parameter([2, -1, 3], np.float32)
    for model in (openvino.convert_model(graph), openvino.Model([openvino.opset13.exp(x)], [x])):
        compile_graph(model, "float32", 1)
    assert [settings.get("CPU_RUNTIME_CACHE_CAPACITY") for settings in compiled] == [None, "0"]


def test_images_of_another_size_are_refused(graph):
    with pytest.raises(ValueError, match=r"takes images of shape .*, not \[2, 3, 65, 64\]"):
        OpenVinoNetwork(graph)(torch.zeros(2, 3, 65, 64))


@pytest.mark.parametrize("runtime, name", [(OpenVinoNetwork, "graph.xml"), (OnnxNetwork, "graph.onnx")])
def test_files_that_are_no_graphs_are_refused(runtime, name, tmp_path):
    with pytest.raises(FileNotFoundError, match="mmrepmlp deploy"):
        runtime(tmp_path / name)
    (tmp_path / name).write_text("<net")
    with pytest.raises(ValueError, match=f"{name} is not a graph"):
        runtime(tmp_path / name)
