# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmdet.models import FPN
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.fit import FitError, check_fit
from mmrepmlp.verbs.forward import make_samples
from mmrepmlp.verbs.model import build_untrained
from tests.verbs.fit_models import (
    BACKBONE,
    BATCH_NORM,
    BN,
    CASCADE,
    CLASSIFIER,
    CONCATENATED,
    DETECTOR,
    FCN,
    OTHERS,
    SEGMENTOR,
    SETR,
    TWO_NECKS,
    YOLO,
    Adapting,
    ChannelsLast,
    Fallback,
    Flattened,
    Own,
    OwnHead,
    OwnSegmentor,
    Unpooled,
    config,
)


@pytest.mark.parametrize(
    "model, changes",
    [
        (SEGMENTOR, {}),
        (CASCADE, {}),
        (DETECTOR, {}),
        (YOLO, {}),
        (CLASSIFIER, {}),
        (CLASSIFIER, {"neck": TWO_NECKS, "head.in_channels": 12}),
        (CLASSIFIER, {"backbone.type": RepMLPNet, "neck": None, "head": None}),
        (DETECTOR, {"neck": dict(type=Own), "bbox_head.in_channels": 99}),
        (SEGMENTOR, {"decode_head.in_index": [0, 1, 2, -1]}),
        ({**DETECTOR, "backbone": dict(type="ResNet", depth=18)}, {}),
        ({**DETECTOR, "backbone": dict(type="NobodyKnows")}, {}),
    ],
)
def test_what_fits_and_what_is_not_understood_passes(model, changes):
    check_fit(config(model, **changes))


@pytest.mark.parametrize(
    "model, changes",
    [
        (
            SEGMENTOR,
            {
                "type": OwnSegmentor,
                "decode_head.in_channels": [16, 32, 64, 128],
                "decode_head.in_index": [0, 1, 2, 4],
                "auxiliary_head.0.in_channels": 64,
            },
        ),
        (SEGMENTOR, {"decode_head": dict(FCN, _delete_=True, type=OwnHead, in_channels=64, in_index=7)}),
        (SEGMENTOR, {"decode_head": dict(FCN, _delete_=True, type=Adapting, in_channels=5, in_index=0)}),
        (CLASSIFIER, {"neck": dict(_delete_=True, type=Flattened, in_features=64 * 4 * 4, dim=1)}),
        (CLASSIFIER, {"neck": dict(_delete_=True, type=Flattened, in_features=4 * 4, dim=2)}),
        (CLASSIFIER, {"neck": dict(_delete_=True, type=Fallback)}),
    ],
)
def test_what_works_on_images_of_the_run_passes(model, changes):
    cfg = config({**model, "test_cfg": dict(mode="whole")} if model is SEGMENTOR else model, **changes)
    built, images = build_untrained(cfg), torch.randn(2, 3, 128, 128)
    built.eval()(images, make_samples(built, images), mode="predict")  # as the framework does
    check_fit(cfg)


@pytest.mark.parametrize(
    "name", ["mocov2/mocov2_resnet50_8xb32-coslr-200e", "simsiam/simsiam_resnet50_8xb32-coslr-100e"]
)
def test_a_neck_that_only_the_loss_calls_counts(name):
    cfg = read_config(f"mmpretrain::{name}_in1k.py")
    cfg.model.backbone = dict(BACKBONE, out_indices=(3,))
    with pytest.raises(FitError, match=r"model\.neck\.in_channels=2048 .*=64\."):
        check_fit(cfg)
    cfg.model.neck.in_channels = 64
    check_fit(cfg)
    views = [torch.randn(2, 3, 64, 64)] * 2
    assert build_untrained(cfg)(views, [], mode="loss")["loss"].isfinite()  # as the framework does


def test_a_neck_that_the_loss_calls_with_other_features_passes():
    cfg = read_config("mmpretrain::swav/swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px.py")
    cfg.model.backbone = dict(BACKBONE, out_indices=(3,))
    cfg.model.neck.in_channels = 64
    views = [torch.randn(2, 3, 64, 64)] * 2 + [torch.randn(2, 3, 32, 32)] * 6
    assert build_untrained(cfg)(views, [], mode="loss")["loss"].isfinite()  # as the framework does
    check_fit(cfg)


def test_the_detector_of_a_semi_supervised_model_is_checked():
    cfg = config(dict(type="mmdet.SemiBaseDetector", detector=DETECTOR))
    check_fit(cfg)
    cfg.model.detector.neck.in_channels = [8, 16, 32, 65]
    with pytest.raises(FitError, match=r"^model\.detector\.neck\.in_channels=.* Set model\.detector\.neck") as caught:
        check_fit(cfg)
    cfg.merge_from_dict(caught.value.options)
    check_fit(cfg)


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
def test_the_other_backbones_are_checked_alike(kind, model, setting, wrong):
    backbone = {**OTHERS[kind], "out_indices": model["backbone"]["out_indices"]}
    cfg = config({**model, "backbone": backbone})
    check_fit(cfg)
    cfg.merge_from_dict({f"model.{setting}": wrong})
    with pytest.raises(FitError, match=rf"model\.{setting}=.* Set ") as caught:
        check_fit(cfg)
    cfg.merge_from_dict(caught.value.options)
    check_fit(cfg)


def test_a_larger_image_that_fails_for_another_reason_proves_nothing(monkeypatch):
    forward = RepMLPNet.forward

    def run(self, x):
        if x.size(-1) > 64:
            raise RuntimeError("out of memory")
        return forward(self, x)

    cfg = config(CLASSIFIER, **{"head.in_channels": 51})
    with pytest.raises(FitError):
        check_fit(cfg)
    monkeypatch.setattr(RepMLPNet, "forward", run)
    check_fit(cfg)


@pytest.mark.parametrize("model", ["a string", dict(type=print), dict(type="a.b.c.D", backbone=3), dict(type=Own())])
def test_a_config_that_is_not_understood_passes(model):
    check_fit(Config(dict(model=model, default_scope=3)))


def test_an_auxiliary_head_counts_in_training_only():
    cfg = config({**SEGMENTOR, "test_cfg": dict(mode="whole")}, **{"auxiliary_head.0.in_channels": 38})
    built, images = build_untrained(cfg).eval(), torch.randn(1, 3, 64, 64)
    built(images, make_samples(built, images), mode="predict")  # as the framework does
    check_fit(cfg, training=False)
    with pytest.raises(FitError, match=r"auxiliary_head\.0\.in_channels=38"):
        check_fit(cfg)


@pytest.mark.parametrize(
    "model, changes, message",
    [
        (CLASSIFIER, {"head.in_channels": 51}, r"model\.head\.in_channels=51 .* \[64\] .* Set .*=64\."),
        (
            CLASSIFIER,
            {"neck": dict(_delete_=True, type=Unpooled)},
            r"Set model\.neck=\[.*Unpooled.*GlobalAveragePooling",
        ),
        (CLASSIFIER, {"neck": None}, r"Set model\.neck=.*GlobalAveragePooling"),
        (CLASSIFIER, {"neck": TWO_NECKS}, r"model\.head\.in_channels=64 .*gets 12\. Set .*=12\."),
        (
            SEGMENTOR,
            {"neck": dict(type="Feature2Pyramid", embed_dim=24, norm_cfg=BN)},
            r"neck\.upsample_4x does not fit .* Change its input channels",
        ),
        (CLASSIFIER, {"neck.dim": 1}, r"model\.neck\.dim=1 .* built for 3 axes and gets 4\. Set model\.neck\.dim=2\."),
        (
            CLASSIFIER,
            {"neck": TWO_NECKS, "neck.1.in_channels": 99, "head.in_channels": 12},
            r"neck\.1\.in_channels=99.*=64\.",
        ),
        (
            CLASSIFIER,
            {"neck": dict(_delete_=True, type=ChannelsLast, in_channels=65)},
            r"neck\.in_channels=65.* Set .*=64",
        ),
        (CLASSIFIER, {"neck": BATCH_NORM}, r"model\.neck\.1\.input_features=768.* Set .*=64\."),
        (SEGMENTOR, {"decode_head.in_channels": [9, 19, 38, 76]}, r"decode_head.*Set .*=\[8, 16, 32, 64\]"),
        (SEGMENTOR, {"decode_head": SETR}, r"decode_head\.in_channels=1024.*=64"),
        (SEGMENTOR, {"decode_head": CONCATENATED}, r"Set .*in_channels=\[8, 16, 32, 64\] and .*\.channels=120"),
        (SEGMENTOR, {"auxiliary_head.0.in_channels": 38}, r"auxiliary_head\.0\.in_channels=38.*=32"),
        (SEGMENTOR, {"backbone.out_indices": (2, 3)}, r"decode_head takes map 3, .* only 2\. Set .*out_indices"),
        (CASCADE, {"decode_head.1.in_channels": 63}, r"decode_head\.1\.in_channels=63.*=64"),
        (DETECTOR, {"neck.in_channels": [25, 51, 102, 204]}, r"model\.neck\.in_channels=.*=\[8, 16, 32, 64\]"),
        (YOLO, {"neck.in_channels": [1024, 512, 256]}, r"model\.neck\.in_channels=.* Set .*=\[64, 32, 16\]"),
        (DETECTOR, {"neck.in_channels": [8, 16, 32]}, r"takes 3 maps, but the backbone gives 4, .*\[8, 16, 32, 64\]"),
        (DETECTOR, {"backbone.out_indices": (3,)}, r"neck.* takes 4 maps, but .* gives 1, .*\(0, 1, 2, 3\)"),
        (DETECTOR, {"neck.type": FPN, "neck.in_channels": [8, 16, 32, 65]}, r"model\.neck\.in_channels=.*65\] .* 64\]"),
        (
            DETECTOR,
            {"neck": None, "bbox_head.in_channels": 8},
            r"model\.bbox_head\.cls_convs\.0 .* Change its input channels",
        ),
        (DETECTOR, {"bbox_head.in_channels": 256}, r"model\.bbox_head\.in_channels=256 .*=16\. check_model=False"),
    ],
)
def test_a_head_or_neck_that_does_not_fit_is_told_what_to_change(model, changes, message):
    cfg = config(model, **changes)
    with pytest.raises(FitError, match=message) as caught:
        check_fit(cfg)
    built = build_untrained(cfg).eval()
    with torch.no_grad(), pytest.raises((RuntimeError, AssertionError, IndexError)):  # as the framework does
        features = built.extract_feat(torch.randn(1, 3, 64, 64))
        for name in ("head", "bbox_head", "decode_head", "auxiliary_head"):
            head = getattr(built, name, None)
            outputs = ()
            for part in head if isinstance(head, nn.ModuleList) else [head] if head else []:
                outputs = (part(features, *(outputs if name == "decode_head" else ())),)
    if caught.value.options:
        cfg.merge_from_dict(caught.value.options)
        check_fit(cfg)


def test_the_check_draws_no_random_numbers():
    state = torch.random.get_rng_state()
    check_fit(config(DETECTOR))
    assert torch.equal(state, torch.random.get_rng_state())
    assert MODELS.get("mmrepmlp.RepMLPNet") is RepMLPNet
