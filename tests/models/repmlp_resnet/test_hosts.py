# SPDX-License-Identifier: Apache-2.0
"""RepMLP-ResNet through what converts, exports and deploys models of any kind."""

import mmpretrain.models  # noqa: F401  registers the classifier
import mmseg.models  # noqa: F401  registers the segmentor
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS

from mmrepmlp.apis import ConversionError, reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.engine.bfloat16 import compute_in_bfloat16
from mmrepmlp.models import RepMLPResNet
from mmrepmlp.reparam import named_tensors
from mmrepmlp.verbs.model import build_model, call_model, random_images
from tests.helpers import needs_export, relative_error
from tests.verbs.reparameterize.test_reparameterize_models import save_random, write_config

from .test_network import TINY, both_blocks, images, tiny

BACKBONE = dict(type="mmrepmlp.RepMLPResNet", **{**TINY, "out_indices": (3,)})
CLASSIFIER = (
    "model = dict(type='ImageClassifier', backbone=BACKBONE, neck=dict(type='GlobalAveragePooling'), "
    "head=dict(type='LinearClsHead', num_classes=5, in_channels=256))\n"
    "data_preprocessor = dict(num_classes=5, mean=[127.5] * 3, std=[127.5] * 3)"
)


def classifier_config(folder, block: str):
    return write_config(folder, "mmpretrain", CLASSIFIER.replace("BACKBONE", repr(dict(BACKBONE, block=block))))


@pytest.mark.parametrize("scope", ["mmengine", "mmpretrain", "mmseg", "mmdet", "mmrepmlp"])
@pytest.mark.parametrize("registry", [MMENGINE_MODELS, MMPRETRAIN_MODELS, MMSEG_MODELS])
def test_builds_from_every_registry_in_every_scope(registry, scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(registry.build(dict(BACKBONE)), RepMLPResNet)


@both_blocks
def test_a_checkpoint_converts(block, tmp_path):
    config = classifier_config(tmp_path, block)
    model = save_random(config, tmp_path / "trained.pth")
    report = reparameterize_checkpoint(config, tmp_path / "trained.pth", tmp_path / "deploy.pth")
    assert all(difference.within_tolerance for difference in report.differences)
    assert {"backbone.0", "whole model, output"} == {difference.output for difference in report.differences}
    cfg = Config.fromfile(report.config)
    deployed = build_model(cfg, load_from_local(report.checkpoint)["state_dict"])
    assert cfg.model.backbone.deploy and deployed.backbone.deploy
    with torch.no_grad():
        before, after = (call_model(m, random_images(model, 2).float()) for m in (model, deployed))
    for (_, actual), (_, expected) in zip(named_tensors(after), named_tensors(before), strict=True):
        assert relative_error(actual, expected) < 1e-5
    with pytest.raises(ConversionError, match="in deploy form already"):
        reparameterize_checkpoint(config, report.checkpoint, tmp_path / "again.pth")


@torch.no_grad()
@both_blocks
@pytest.mark.parametrize("deploy", [False, True])
def test_it_runs_in_bfloat16(block, deploy):
    network = tiny(block, deploy=deploy)
    for actual, expected in zip(compute_in_bfloat16(network)(images()), network(images()), strict=True):
        assert actual.dtype == torch.float32 and relative_error(actual, expected) < 0.1


@needs_export
@pytest.mark.slow
@both_blocks
def test_it_is_exported(block, tmp_path):
    from mmrepmlp.export import ExportError, export_onnx

    network = tiny(block, out_indices=(0, 1))
    report = export_onnx(network, tmp_path / "network.onnx", size=(64, 64))
    assert max(report.errors.values()) < 1e-4 and "BatchNormalization" not in report.operators
    reason = "since the fully connected layers of its global perceptron"
    for settings, advice in (
        (dict(size=(96, 96)), ""),
        (dict(size=(64, 64), dynamic=("height", "width")), r".*Make less of it symbolic \(--dynamic"),
    ):
        with pytest.raises(ExportError, match=reason + advice):
            export_onnx(network, tmp_path / "other.onnx", **settings)
    assert not (tmp_path / "other.onnx").exists()


@needs_export
@pytest.mark.slow
def test_a_converted_network_is_deployed(tmp_path):
    from mmrepmlp.apis import deploy_checkpoint

    pytest.importorskip("openvino")
    config = classifier_config(tmp_path, "light")
    save_random(config, tmp_path / "trained.pth")
    report = deploy_checkpoint(config, tmp_path / "trained.pth", tmp_path / "network", size=(64, 64))
    assert max(report.proof.errors.values()) < 1e-4
