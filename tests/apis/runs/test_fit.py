# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmdet.models import FPN
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.models import EncoderDecoder, FCNHead
from torch import nn

from mmrepmlp.apis.config import read_config
from mmrepmlp.apis.forward import make_samples
from mmrepmlp.apis.model import build_untrained
from mmrepmlp.apis.runs.fit import FitError, check_fit
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY

MAPS = [8, 16, 32, 64]
BACKBONE = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, out_indices=(0, 1, 2, 3))
BN = dict(type="BN")
UPER = dict(type="UPerHead", channels=8, num_classes=3, norm_cfg=BN, in_channels=MAPS, in_index=[0, 1, 2, 3])
FCN = dict(type="FCNHead", channels=8, num_classes=3, norm_cfg=BN, in_channels=32, in_index=2)
SETR = dict(FCN, _delete_=True, type="SETRUPHead", in_channels=1024, in_index=3)
CONCATENATED = dict(
    FCN,
    _delete_=True,
    in_channels=[18, 36, 72, 144],
    in_index=(0, 1, 2, 3),
    input_transform="resize_concat",
    channels=270,
    num_convs=0,
    concat_input=False,
)
SEGMENTOR = dict(type="mmseg.EncoderDecoder", backbone=BACKBONE, decode_head=UPER, auxiliary_head=[FCN])
CASCADE = dict(
    type="mmseg.CascadeEncoderDecoder",
    num_stages=2,
    backbone=BACKBONE,
    decode_head=[
        {**FCN, "in_channels": 64, "in_index": 3},
        dict(type="OCRHead", in_channels=64, in_index=3, channels=8, ocr_channels=8, num_classes=3, norm_cfg=BN),
    ],
)
DETECTOR = dict(
    type="mmdet.RetinaNet",
    backbone=BACKBONE,
    neck=dict(type="FPN", in_channels=MAPS, out_channels=16, num_outs=5),
    bbox_head=dict(
        type="RetinaHead",
        in_channels=16,
        feat_channels=8,
        num_classes=3,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[8], ratios=[1.0], octave_base_scale=None, strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
    ),
)
# Its neck counts the maps from the last one on.
YOLO = dict(
    type="mmdet.YOLOV3",
    backbone={**BACKBONE, "out_indices": (1, 2, 3)},
    neck=dict(type="YOLOV3Neck", num_scales=3, in_channels=[64, 32, 16], out_channels=[32, 16, 8]),
    bbox_head=dict(
        type="YOLOV3Head",
        num_classes=3,
        in_channels=[32, 16, 8],
        out_channels=[64, 32, 16],
        anchor_generator=dict(type="YOLOAnchorGenerator", base_sizes=[[(9, 9)]] * 3, strides=[32, 16, 8]),
        bbox_coder=dict(type="YOLOBBoxCoder"),
    ),
)
CLASSIFIER = dict(
    type="mmpretrain.ImageClassifier",
    backbone={**BACKBONE, "out_indices": (3,)},
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", in_channels=64, num_classes=3),
)
BATCH_NORM = [dict(type="GlobalAveragePooling"), dict(type="ClsBatchNormNeck", input_features=768)]
TWO_NECKS = [dict(type="GlobalAveragePooling"), dict(type="LinearNeck", in_channels=64, out_channels=12)]


class Own(nn.Module):
    """A part of somebody else, which takes what it gets."""

    in_channels = (1, 2, 3)

    def forward(self, *args, **kwargs):
        raise RuntimeError("not without my labels")


class OwnSegmentor(EncoderDecoder):
    """A segmentor of somebody else, whose heads get more maps than the backbone gives, with twice the channels."""

    def extract_feat(self, inputs):
        maps = [torch.cat([x, x], 1) for x in super().extract_feat(inputs)]
        return [*maps, maps[-1]]


class OwnHead(FCNHead):
    """A head of somebody else, which reads the last map wherever it is."""

    def forward(self, inputs):
        return self.cls_seg(self._forward_feature([inputs[-1]] * (self.in_index + 1)))


class Adapting(FCNHead):
    """A head of somebody else, which changes what it gets before it calls itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.adapt = nn.Conv2d(64, self.in_channels, 1)

    def predict(self, inputs, *args):
        return super().predict([self.adapt(inputs[-1])], *args)


class Flattened(nn.Module):
    """A neck for images of one size."""

    def __init__(self, in_features, dim):
        super().__init__()
        self.dim, self.fc = dim, nn.Linear(in_features, 64)

    def forward(self, inputs):
        return (self.fc(inputs[-1].flatten(self.dim)).flatten(1)[:, :64],)


class ChannelsLast(nn.Module):
    """A neck that moves the channels to the last axis."""

    def __init__(self, in_channels):
        super().__init__()
        self.fc = nn.Linear(in_channels, 64)

    def forward(self, inputs):
        return (self.fc(inputs[-1].permute(0, 2, 3, 1)).mean((1, 2)),)


class Unpooled(nn.Module):
    """A neck that keeps the map."""

    def forward(self, inputs):
        return (inputs[-1].relu(),)


class Fallback(nn.Module):
    """A neck that goes another way where one does not work."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1)

    def forward(self, inputs):
        try:
            return (self.first(inputs[-1]).mean((2, 3)),)
        except RuntimeError:
            return (self.second(inputs[-1]).mean((2, 3)),)


def config(model: dict, **changes) -> Config:
    scope = model["type"].partition(".")[0]
    cfg = Config(dict(model=model, default_scope=scope))
    for name, value in changes.items():
        cfg.merge_from_dict({f"model.{name}": value})
    return cfg


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


OTHERS = {
    "one size": dict(type="mmrepmlp.RepMLPResNet", base_channels=2, img_size=64, h=2, w=2, groups=2),
    "some sizes": dict(type="mmrepmlp.RepMLPResNet", base_channels=2, img_size=64, h=4, w=4, groups=2, repmlp_stages=2),
    "any size": dict(type="mmrepmlp.RepOptVGG", arch=dict(depths=[1] * 4, channels=[8, 16, 32, 64])),
}


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
