# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import mmpretrain.models  # noqa: F401  registers the models
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import evaluate
from mmrepmlp.apis.deployment.evaluate_onnx import evaluate_onnx, replace_forward_by_onnx
from mmrepmlp.apis.deployment.export_checkpoint import export_checkpoint
from mmrepmlp.apis.model import build_model
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.datasets import write_segmentation_scenes
from mmrepmlp.export import OnnxNetwork
from mmrepmlp.models import RepMLPNet
from tests.apis.conversion.test_reparameterize_models import save_random
from tests.conftest import TINY
from tests.fixtures import CONFIG, ROOT
from tests.helpers import relative_error

UPERNET = ROOT / "configs/upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py"


@pytest.mark.slow
def test_digits_give_the_same_accuracy_in_onnxruntime(trained, tmp_path):
    report = export_checkpoint(CONFIG, trained.checkpoint, tmp_path / "mini.onnx")
    assert max(report.errors.values()) < 1e-4
    expected = evaluate(CONFIG, trained.checkpoint, str(tmp_path), cfg_options=trained.options)
    assert evaluate_onnx(CONFIG, report.path, str(tmp_path), cfg_options=trained.options) == expected


@pytest.mark.slow
def test_scenes_give_the_same_metrics_in_onnxruntime(tmp_path):
    write_segmentation_scenes(tmp_path / "scenes", counts=dict(train=1, val=6))
    cfg = Config.fromfile(UPERNET)
    cfg.merge_from_dict(
        {
            "model.backbone.init_cfg": None,
            "test_dataloader.dataset.data_root": str(tmp_path / "scenes"),
            "test_dataloader.num_workers": 0,
            "test_dataloader.persistent_workers": False,
        }
    )
    config = tmp_path / "config.py"
    cfg.dump(config)
    save_random(config, tmp_path / "random.pth")
    report = export_checkpoint(config, tmp_path / "random.pth", tmp_path / "upernet.onnx", size=(120, 152))
    expected = evaluate(config, tmp_path / "random.pth", str(tmp_path / "log"))
    actual = evaluate_onnx(config, report.path, str(tmp_path / "log"))
    assert actual == pytest.approx(expected, abs=0.011, nan_ok=True)  # percents that mmsegmentation rounds to 0.01

    model, exported = (build_model(cfg, load_from_local(tmp_path / "random.pth")["state_dict"]) for _ in range(2))
    replace_forward_by_onnx(exported, OnnxNetwork(report.path))
    images, metas = torch.randn(2, 3, 120, 152), [dict(img_shape=(120, 152))] * 2
    with torch.no_grad():
        expected, actual = (m.encode_decode(images, metas) for m in (model, exported))
    assert actual.shape == (2, 11, 120, 152) and relative_error(actual, expected) < 1e-5


def test_other_models_have_no_logits():
    with pytest.raises(ValueError, match="RepMLPNet is neither a classifier nor a segmentor"):
        replace_forward_by_onnx(RepMLPNet(TINY, img_size=64), None)


@pytest.mark.parametrize(
    "head, outputs, channels, message",
    [
        (dict(type="MultiTaskHead"), 2, 3, "gives 2 outputs"),
        (dict(num_classes=4), 1, 3, "gives 3 channels, the config's head 4"),
        (dict(out_channels=1, num_classes=2), 1, 1, None),
        (dict(), 1, 3, None),
    ],
)
def test_what_a_graph_and_a_head_may_give(head, outputs, channels, message):
    model = SimpleNamespace(head=SimpleNamespace(**head))
    network = SimpleNamespace(outputs=outputs, channels=channels)
    if message is None:
        replace_forward_by_onnx(model, network)
        return
    with pytest.raises(ValueError, match=message):
        replace_forward_by_onnx(model, network)
