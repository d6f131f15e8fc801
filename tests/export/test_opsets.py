# SPDX-License-Identifier: Apache-2.0
import mmseg.models  # noqa: F401  register the models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmrepmlp.export import export_onnx
from mmrepmlp.export.opsets import EXPORTER_OPSETS, NEWEST, OLDEST, convert_opset, exporter_opset
from tests.conftest import TINY
from tests.helpers import randomize

pytestmark = pytest.mark.slow
ALL_AXES = ("batch", "height", "width")


class Network(nn.Module):
    """With the heads of a segmentor and layers that older versions have no operators for."""

    def __init__(self):
        super().__init__()
        backbone = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, out_indices=(0, 1))
        shared = dict(in_channels=[8, 16], in_index=[0, 1], channels=8, num_classes=3, norm_cfg=dict(type="BN"))
        head = dict(type="UPerHead", pool_scales=(1, 3), **shared)
        with DefaultScope.overwrite_default_scope("mmseg"):
            self.segmentor = MODELS.build(dict(type="EncoderDecoder", backbone=backbone, decode_head=head))
        self.group_norm, self.layer_norm = nn.GroupNorm(4, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, images):
        maps = self.segmentor.backbone(images)
        x = self.layer_norm(self.group_norm(maps[0]).flatten(2).transpose(1, 2))
        x = F.hardswish(F.softmax(x + self.attention(x, x, x)[0], -1)).mean(1)
        return x, self.segmentor.decode_head(maps)


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


@pytest.mark.parametrize("exported, dynamic", zip(EXPORTER_OPSETS, [ALL_AXES, ("batch",)]))
def test_every_version_computes_the_same(exported, dynamic, tmp_path):
    path = tmp_path / "network.onnx"
    network = randomize(Network(), torch.Generator().manual_seed(0), spread=0.1).eval()
    export_onnx(network, path, size=(72, 88), dynamic=dynamic, opset=exported)
    model = onnx.load(path)
    generator = np.random.default_rng(0)
    sizes = [(72, 88), (40, 130)] if dynamic == ALL_AXES else [(72, 88)]
    images = [generator.standard_normal((3, 3, *size)).astype(np.float32) for size in sizes]
    expected = [run(model, batch) for batch in images]
    for opset in (opset for opset in range(OLDEST, NEWEST + 1) if exporter_opset(opset) == exported):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        converted = convert_opset(copy, opset)
        onnx.checker.check_model(converted, full_check=True)
        assert [(entry.domain, entry.version) for entry in converted.opset_import] == [("", opset)]
        for batch, outputs in zip(images, expected):
            for actual, output in zip(run(converted, batch), outputs, strict=True):
                np.testing.assert_allclose(actual, output, rtol=0, atol=1e-6 * abs(output).max())


def test_what_an_old_version_cannot_express_is_named():
    node = onnx.helper.make_node("GridSample", ["x", "y"], ["z"], mode="linear")
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"],
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(ValueError, match="opset 13 has no GridSample"):
        convert_opset(model, 13)
