# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config, ConfigDict

from mmrepmlp.apis import evaluate, train
from mmrepmlp.apis.runs.checks import check_channels, check_files
from tests.fixtures import CONFIG

MAPS = [80, 160, 320, 640]
BACKBONE = dict(type="mmrepmlp.RepMLPNet", arch="D", out_indices=(0, 1, 2, 3))
SEGMENTOR = dict(
    backbone=BACKBONE,
    decode_head=dict(in_channels=MAPS, in_index=[0, 1, 2, 3]),
    auxiliary_head=[dict(in_channels=320, in_index=2)],
)
DETECTOR = dict(backbone=BACKBONE, neck=dict(type="FPN", in_channels=MAPS), bbox_head=dict(in_channels=256))
CLASSIFIER = dict(
    backbone={**BACKBONE, "out_indices": (3,)}, neck=dict(type="GlobalAveragePooling"), head=dict(in_channels=640)
)


@pytest.mark.parametrize("model", [SEGMENTOR, DETECTOR, CLASSIFIER, {**DETECTOR, "backbone": dict(type="ResNet")}])
def test_what_fits_passes(model):
    check_channels(ConfigDict(model))


@pytest.mark.parametrize(
    "model, changes, message",
    [
        (CLASSIFIER, {"head.in_channels": 512}, r"model\.head\.in_channels=512 .* \[640\] .* Set .*=640\."),
        (SEGMENTOR, {"decode_head.in_channels": [96, 192, 384, 768]}, r"decode_head.*Set .*=\[80, 160, 320, 640\]"),
        (SEGMENTOR, {"auxiliary_head.0.in_channels": 384}, r"auxiliary_head\.in_channels=384.*=320"),
        (SEGMENTOR, {"backbone.out_indices": (2, 3)}, r"decode_head takes map 3, .* only 2\. Set .*out_indices"),
        (DETECTOR, {"neck.in_channels": [256, 512, 1024, 2048]}, r"model\.neck\.in_channels=.*=\[80, 160, 320, 640\]"),
        (DETECTOR, {"backbone.out_indices": (3,)}, r"model\.neck takes map 3, .* only 1\. .*\(0, 1, 2, 3\)"),
    ],
)
def test_a_head_or_neck_that_does_not_fit_is_told_what_to_change(model, changes, message):
    cfg = Config(dict(model=model))
    cfg.merge_from_dict({f"model.{name}": value for name, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        check_channels(cfg.model)


def test_a_missing_folder_is_named_with_its_setting(tmp_path):
    (tmp_path / "img").mkdir()
    leaf = dict(type="BaseSegDataset", data_root=str(tmp_path), data_prefix=dict(img_path="img", seg_map_path="ann"))
    wrapped = ConfigDict(type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[leaf]))
    with pytest.raises(
        FileNotFoundError, match=r"ann does not exist; it is set by train\.dataset\.datasets\.data_prefix\.seg_map_path"
    ):
        check_files(wrapped, "train")
    (tmp_path / "ann").mkdir()
    check_files(wrapped, "train")
    check_files(ConfigDict(type="ImageNet", data_root="s3://bucket/imagenet"), "train")


def test_mistakes_end_before_anything_is_built(tmp_path):
    missing = {"train_dataloader.dataset.data_root": str(tmp_path / "nowhere")}
    with pytest.raises(
        FileNotFoundError, match=r"nowhere does not exist; it is set by train_dataloader\.dataset\.data_root"
    ):
        train(CONFIG, str(tmp_path / "run"), cfg_options=missing)
    with pytest.raises(ValueError, match=r"model\.head\.in_channels=100"):
        evaluate(CONFIG, "none.pth", str(tmp_path / "run"), cfg_options={"model.head.in_channels": 100})
    assert not (tmp_path / "run").exists()
