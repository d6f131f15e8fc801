# SPDX-License-Identifier: Apache-2.0
"""RepMLP-ResNet through what converts, exports and deploys models of any kind."""

import mmpretrain.models  # noqa: F401  registers the classifier
import pytest
import torch

from mmrepmlp.engine.bfloat16 import compute_in_bfloat16
from tests.helpers import needs_export, relative_error
from tests.verbs.reparameterize.test_reparameterize_models import assert_converts, save_random, write_config

from .test_network import TINY, both_blocks, images, tiny

BACKBONE = dict(type="mmrepmlp.RepMLPResNet", **{**TINY, "out_indices": (1,)})
CLASSIFIER = (
    "model = dict(type='ImageClassifier', backbone=BACKBONE, neck=dict(type='GlobalAveragePooling'), "
    "head=dict(type='LinearClsHead', num_classes=5, in_channels=64))\n"
    "data_preprocessor = dict(num_classes=5, mean=[127.5] * 3, std=[127.5] * 3)"
)


def classifier_config(folder, block: str):
    return write_config(folder, "mmpretrain", CLASSIFIER.replace("BACKBONE", repr(dict(BACKBONE, block=block))))


@both_blocks
def test_a_checkpoint_converts(block, tmp_path):
    assert_converts(classifier_config(tmp_path, block), tmp_path, "output", outputs=1)


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
    reason = "the fully connected layers of its global perceptron"
    for settings, advice in (
        (dict(size=(96, 96)), ""),
        (dict(size=(64, 64), dynamic=("height", "width")), r".*Make fewer axes symbolic \(--dynamic"),
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
