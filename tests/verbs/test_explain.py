# SPDX-License-Identifier: Apache-2.0
"""Runs of small models that the frameworks themselves end, and what is said about it."""

import re
from collections.abc import Callable

import pytest
import torch
from mmdet.models import FPN
from mmengine.config import Config
from torch import nn

from dev.sweep.trial import compute_loss
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.explain import ExplainedError, explain, explained
from mmrepmlp.verbs.model import build_untrained
from tests.verbs.explain_models import (
    BACKBONE,
    BATCH_NORM,
    BN,
    CASCADE,
    CLASSIFIER,
    CONCATENATED,
    DETECTOR,
    OTHERS,
    SEGMENTOR,
    SETR,
    TWO_NECKS,
    YOLO,
    ChannelsLast,
    Unpooled,
    config,
    norm,
)


def call(cfg: Config) -> None:
    """Build a model and call it as the framework does: detectors up to the raw outputs, others for their loss."""
    model = build_untrained(cfg)
    if cfg.default_scope == "mmdet":
        model.eval()(torch.randn(1, 3, 64, 64), [], mode="tensor")
    else:
        compute_loss(model.train(), cfg, 64)


def explain_call(cfg: Config, call: Callable[[Config], object] = call) -> ExplainedError:
    with pytest.raises(ExplainedError) as caught, explained(cfg):
        call(cfg)
    assert caught.value.__cause__ is not None
    return caught.value


@pytest.mark.parametrize(
    "model, changes, message",
    [
        (CLASSIFIER, {"head.in_channels": 51}, r"head\.fc was built for 51 .* gets 64.* Set .*\.in_channels=64\."),
        (
            CLASSIFIER,
            {"neck": dict(_delete_=True, type=Unpooled)},
            r"head\.fc takes vectors of 64 .* Set model\.neck=\[.*Unpooled.*GlobalAveragePooling",
        ),
        (CLASSIFIER, {"neck": None}, r"the backbone gives .*\[64\].* Set model\.neck=.*GlobalAveragePooling"),
        (
            CLASSIFIER,
            {"neck": dict(type="GlobalAveragePooling", dim=1)},  # of a network of tokens
            r"neck\.gap averages sequences, but gets .*\[64\].* Set model\.neck\.dim=2\.",
        ),
        (CLASSIFIER, {"neck": TWO_NECKS}, r"gets 12; the neck gives .*\[12\].* Set .*head\.in_channels=12\."),
        (
            CLASSIFIER,
            {"neck": TWO_NECKS, "neck.1.in_channels": 99, "head.in_channels": 12},
            r"neck\.1\.fc was built for 99 .* gets 64.*neck\.1\.in_channels=64\.",
        ),
        (CLASSIFIER, {"neck": dict(type=ChannelsLast, in_channels=65)}, r"Set model\.neck\.in_channels=64"),
        (CLASSIFIER, {"neck": BATCH_NORM}, r"Set model\.neck\.1\.input_features=64\."),
        (CLASSIFIER, {"neck": norm("batch", 60)}, r"norm was built for 60 .* 64"),
        (CLASSIFIER, {"neck": norm("group", 60)}, r"norm was built for 60 .* 64"),
        (SEGMENTOR, {"decode_head.in_channels": [9, 19, 38, 76]}, r"Set model\.decode_head.*=\[8, 16, 32, 64\]"),
        (SEGMENTOR, {"decode_head": SETR}, r"built for 1024 .* gets 64.*decode_head\.in_channels=64\."),
        (SEGMENTOR, {"decode_head": CONCATENATED}, r"Set .*in_channels=\[8, 16, 32, 64\] and .*\.channels=120"),
        (SEGMENTOR, {"auxiliary_head.0.in_channels": 38}, r"gets 32.*auxiliary_head\.0\.in_channels=32"),
        (SEGMENTOR, {"backbone.out_indices": (2, 3)}, r"takes feature map 3, .* only 2; .* Reduce .*in_index"),
        (
            SEGMENTOR,
            {"neck": dict(type="Feature2Pyramid", embed_dim=24, norm_cfg=BN)},
            r"neck\.upsample_4x\.0 was built for 24 .* gets 8; .* Change its input channels",
        ),
        (CASCADE, {"decode_head.1.in_channels": 63}, r"decode_head\.1\.in_channels=64"),
        (DETECTOR, {"backbone.in_channels": 4}, r"of 4 channels and gets 3\. Set .*backbone\.in_channels=3,"),
        (DETECTOR, {"neck.in_channels": [25, 51, 102, 204]}, r"gets 8; .*\.in_channels=\[8, 16, 32, 64\]"),
        (YOLO, {"neck.in_channels": [1024, 512, 256]}, r"gets 64; .*\.in_channels=\[64, 32, 16\]"),
        (DETECTOR, {"neck.in_channels": [8, 16, 32]}, r"takes 3 .* gets 4; .*\[8, 16, 32, 64\] channels"),
        (DETECTOR, {"backbone.out_indices": (3,)}, r"neck.* takes 4 feature maps, but gets 1; .*\(0, 1, 2, 3\)"),
        (DETECTOR, {"neck.type": FPN, "neck.in_channels": [8, 16, 32, 65]}, r"neck\.in_channels=\[8, 16, 32, 64\]"),
        (DETECTOR, {"neck": None, "bbox_head.in_channels": 8}, r"cls_convs\.0\.conv .* Change its input"),
        (DETECTOR, {"bbox_head.in_channels": 256}, r"the neck gives .*16.* Set model\.bbox_head\.in_channels=16\."),
    ],
)  # fmt: skip
def test_a_neck_or_head_that_does_not_fit(model, changes, message):
    cfg = config(model, **changes)
    error = explain_call(cfg)
    assert re.search(message, str(error)), error
    assert str(error).startswith(f"{type(error.__cause__).__name__}") and explain(error) == str(error)
    if error.options:
        cfg.merge_from_dict(error.options)
        call(cfg)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    "model, setting, wrong",
    [
        (CLASSIFIER, "head.in_channels", 51),
        (CLASSIFIER, "neck", None),
        (SEGMENTOR, "decode_head.in_channels", [9, 19, 38, 76]),
        (DETECTOR, "neck.in_channels", [25, 51, 102, 204]),
    ],
)
def test_the_other_backbones_are_explained_alike(kind, model, setting, wrong):
    backbone = {**OTHERS[kind], "out_indices": model["backbone"]["out_indices"]}
    cfg = config({**model, "backbone": backbone}, **{setting: wrong})
    error = explain_call(cfg)
    assert list(error.options) == [f"model.{setting}"]
    cfg.merge_from_dict(error.options)
    call(cfg)


@pytest.mark.parametrize(
    "name", ["mocov2/mocov2_resnet50_8xb32-coslr-200e", "simsiam/simsiam_resnet50_8xb32-coslr-100e"]
)
def test_a_neck_that_only_the_loss_calls(name):
    cfg = read_config(f"mmpretrain::{name}_in1k.py")
    cfg.model.backbone = dict(BACKBONE, out_indices=(3,))
    views = [torch.randn(2, 3, 64, 64)] * 2
    error = explain_call(cfg, lambda cfg: build_untrained(cfg)(views, [], mode="loss"))
    assert re.search(r"built for 2048 .*model\.neck\.in_channels=64\.", str(error))
    cfg.merge_from_dict(error.options)
    assert build_untrained(cfg)(views, [], mode="loss")["loss"].isfinite()


def test_the_detector_inside_a_semi_supervised_model():
    teaching = dict(semi_train_cfg={"freeze_teacher": True}, semi_test_cfg={"predict_on": "student"})
    cfg = config(dict(type="mmdet.SemiBaseDetector", detector=DETECTOR, **teaching))
    cfg.model.detector.neck.in_channels = [8, 16, 32, 65]
    assert "Set model.detector.neck.in_channels=[8, 16, 32, 64]" in str(explain_call(cfg))


def test_names_do_not_have_what_wrappers_add():
    cfg = config(CLASSIFIER, **{"head.in_channels": 51})
    model = nn.Sequential()
    model.module = build_untrained(cfg)
    model.forward = lambda images: model.module(images, mode="tensor")
    with pytest.raises(ExplainedError, match=r"\. model\.head\.fc was built for 51"), explained(cfg):
        model(torch.randn(1, 3, 64, 64))


class Raising(nn.Module):
    """A part with an error of its own."""

    def forward(self, x):
        raise RuntimeError("not without my labels")


def test_errors_that_are_not_understood_stay_as_they_are():
    cfg = config(CLASSIFIER, **{"neck": dict(_delete_=True, type=Raising)})
    with pytest.raises(RuntimeError, match="^not without my labels$") as caught, explained(cfg):
        call(cfg)
    assert type(caught.value) is RuntimeError and explain(caught.value) is None
    error = KeyError("what")
    for strange in (cfg, Config(), Config(dict(model="a string", train_dataloader=[3], test_dataloader=object()))):
        with pytest.raises(KeyError) as caught, explained(strange):
            raise error
        assert caught.value is error


def test_predictions_that_cannot_be_merged_are_explained():
    from mmdet.models import DetTTAModel
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    masks = InstanceData(bboxes=torch.rand(2, 4), masks=torch.rand(2, 8, 8) > 0.5)
    samples = [DetDataSample(pred_instances=masks) for _ in range(2)]
    module = torch.nn.Identity()
    module.test_step = None
    message = "AssertionError: TTA of instance.*DetTTAModel cannot merge .*omit --tta"
    with pytest.raises(ExplainedError, match=message), explained(Config(dict(model=dict()))):
        DetTTAModel(module=module).merge_preds([samples])
