# SPDX-License-Identifier: Apache-2.0
import os
from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmrepmlp.export import ExportError, export_onnx
from mmrepmlp.export.graph import verify_graph
from mmrepmlp.export.network import NamedOutputs
from mmrepmlp.models.repmlpnet.tiling import kept_positions, padded_positions, split_tiles
from tests.export.conftest import random_network
from tests.helpers import render


def outputs_of(path, images):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {"images": images.numpy()})


def assert_same(path, backbone, shape):
    images = torch.randn(*shape)
    with torch.no_grad():
        expected = backbone(images)
    actual = outputs_of(path, images)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-4, atol=1e-4 * e.abs().max().item())


def test_deploy_form_has_neither_batch_norms_nor_grouped_convolutions(backbone, export_once):
    report = export_once("batch")
    graph = onnx.load(str(report.path)).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators == report.operators and "BatchNormalization" not in operators
    units, downsamplings = 4, 3
    # Each unit has one product of tiles, two that gate and two convolutions that feed forward; then stem, downsampling.
    assert operators["MatMul"] == units and operators["Gemm"] == 2 * units
    assert operators["Conv"] == 2 * units + downsamplings + 1
    assert operators["Gelu"] == operators["Sigmoid"] == units
    groups = [a.i for node in graph.node if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
    assert set(groups) <= {1}
    assert not backbone.deploy and set(os.listdir(report.path.parent)) == {"network.onnx", "report.pickle"}
    assert "4 MatMul" in render(report.table())


@pytest.mark.slow
def test_packages_that_turn_the_old_exporter_on_change_nothing(tmp_path, monkeypatch):
    backbone, settings = random_network(out_indices=(0,)), dict(size=(64, 64), dynamic=())
    export, expected = torch.onnx.export, export_onnx(backbone, tmp_path / "expected.onnx", **settings)
    for patch in (
        partial(export, dynamo=False),
        lambda *arguments, dynamo=False, **options: export(*arguments, dynamo=dynamo, **options),
    ):
        monkeypatch.setattr(torch.onnx, "export", patch)
        actual = export_onnx(backbone, tmp_path / "actual.onnx", overwrite=True, **settings)
        assert actual.operators == expected.operators and actual.opset == expected.opset


@pytest.mark.slow
def test_training_form_on_request(tmp_path):
    backbone = random_network(out_indices=(0, 1))
    report = export_onnx(backbone, tmp_path / "network.onnx", (64, 64), batch=2, dynamic=(), deploy=False)
    groups = [a.i for n in onnx.load(str(report.path)).graph.node for a in n.attribute if a.name == "group"]
    assert max(groups) > 1
    assert_same(report.path, backbone, (2, 3, 64, 64))


@pytest.mark.parametrize(
    "dynamic, shapes",
    [
        ((), [(2, 3, 64, 64)]),
        (("batch",), [(1, 3, 64, 64), (5, 3, 64, 64)]),
        pytest.param(
            ("batch", "height", "width"),
            [(1, 3, 64, 64), (2, 3, 72, 88), (1, 3, 150, 70), (3, 3, 20, 33), (1, 3, 5, 9)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_graph_computes_what_the_network_does(backbone, export_once, dynamic, shapes):
    report = export_once(*dynamic)
    assert len(report.errors) == {0: 1, 1: 2, 3: 6}[len(dynamic)] and max(report.errors.values()) < 1e-5
    for shape in shapes:
        assert_same(report.path, backbone, shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "opset, dynamic, pad_mode, out_indices",
    [
        (13, ("batch",), "zeros", (0, 1)),
        (17, ("height",), "shift", (0, 1)),
        (28, ("height", "width"), "zeros", (0, 1, 2)),  # sizes of one stage after the other nest
    ],
)
def test_other_versions_of_the_operators(tmp_path, opset, dynamic, pad_mode, out_indices):
    backbone = random_network(pad_mode=pad_mode, out_indices=out_indices)
    report = export_onnx(backbone, tmp_path / "network.onnx", size=(72, 88), opset=opset, dynamic=dynamic)
    imports = {entry.domain: entry.version for entry in onnx.load(str(report.path)).opset_import}
    assert imports == {"": opset} and report.opset == opset
    shape = [1, 3, 72, 88]
    for axis in dynamic:
        shape[NamedOutputs.axes[axis]] += 2
    others = [(1, 3, 64, 128), (1, 3, 100, 40)] if "width" in dynamic else []
    for served in (shape, *others):
        assert_same(report.path, backbone, served)


@given(size=st.integers(1, 40), side=st.integers(1, 12))
def test_positions_in_an_open_size_are_those_of_a_known_one(size, side):
    row = torch.arange(float(size)).view(1, 1, 1, size)
    filled = padded_positions(size, side, row.device)
    assert torch.equal(row[0, 0, 0][filled].view(1, -1, side), split_tiles(row, 1, 1, side, "shift"))
    assert torch.equal(filled[kept_positions(size, side, row.device)], torch.arange(size))


@pytest.mark.slow
def test_refusals_write_nothing(tmp_path):
    backbone = random_network(out_indices=(0,))
    path = tmp_path / "out/network.onnx"
    with pytest.raises(ValueError, match="dynamic=depth: expected some of batch, height, width"):
        export_onnx(backbone, path, dynamic=("depth",))
    for opset in (12, 99):
        with pytest.raises(ValueError, match=f"opset={opset}: expected 13 to {onnx.defs.onnx_opset_version()}"):
            export_onnx(backbone, path, opset=opset)
    with pytest.raises(ValueError, match=r"part='neck': expected None, or a part of the model: there is none"):
        export_onnx(backbone, path, part="neck")
    with pytest.raises(ExportError, match=r"relative on images of shape \(., 3, 64, 64\), allowed 1e-12. Nothing"):
        export_onnx(backbone, path, size=(64, 64), dynamic=(), tolerance=1e-12)
    assert not os.listdir(path.parent)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="already exists.*--overwrite"):
        export_onnx(backbone, path)
    assert path.read_text() == "precious"


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.neck = backbone, nn.ModuleList([nn.Conv2d(8, 4, 1)])
        self.neck.forward = lambda maps: self.neck[0](maps[0])

    def forward(self, images, data_samples=None, mode="tensor"):
        return data_samples[0]


@pytest.mark.slow
def test_parts_of_nested_models(tmp_path):
    model = nn.Module()
    model.forward = lambda images, mode: model.student(images)
    model.student = Detector(random_network(out_indices=(0,))).eval()
    path = tmp_path / "network.onnx"
    with pytest.raises(ExportError, match=r"Module cannot be exported.*'student.neck' or part='student.backbone'"):
        export_onnx(model, path, size=(64, 64))
    with pytest.raises(ValueError, match="or a part of the model: student.neck, student.backbone"):
        export_onnx(model, path, part="neck")
    export_onnx(model, path, size=(64, 64), batch=2, dynamic=(), part="student.neck")
    assert_same(path, lambda x: [model.student.neck.forward(model.student.backbone(x))], (2, 3, 64, 64))


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, float("nan")]), torch.ones(1), torch.zeros(2)])
def test_no_wrong_output_hides_behind_a_right_one(wrong):
    right = torch.ones(2, 2)
    network = NamedOutputs(nn.Conv2d(3, 1, 1))
    network.forward = lambda x: (right, right[0])
    with pytest.raises(ExportError, match=r"(nan|inf|1\.0e\+00) relative on images of shape \(2, 3, 8, 8\)"):
        verify_graph(network, lambda x: (right, wrong), (2, 8, 8), (), 0.5)
    network.forward = lambda x: (0 * right,)
    assert verify_graph(network, lambda x: (0 * right,), (2, 8, 8), (), 0) == {(2, 3, 8, 8): 0}


class OneByOne(nn.Conv2d):
    def forward(self, images):
        return torch.stack([super(OneByOne, self).forward(image) for image in images])


@pytest.mark.slow
def test_networks_for_one_number_of_images(tmp_path):
    network = OneByOne(3, 2, 1).eval()
    with pytest.raises(ExportError, match=r"cannot be exported.*symbolic \(--dynamic, without values"):
        export_onnx(network, tmp_path / "network.onnx", size=(8, 8))
    export_onnx(network, tmp_path / "network.onnx", size=(8, 8), dynamic=())
    assert_same(tmp_path / "network.onnx", lambda x: [network(x)], (1, 3, 8, 8))
