# SPDX-License-Identifier: Apache-2.0
"""The conversion under every framework, and of other people's re-parameterizable networks."""

import mmseg.models  # noqa: F401  register the models
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.apis import ConversionError, reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.models import RepMLPNet
from mmrepmlp.reparam import named_tensors
from mmrepmlp.verbs.config import framework_of, read_config
from mmrepmlp.verbs.model import build_model, call_model, count_macs, random_images
from tests.conftest import TINY
from tests.helpers import randomize, relative_error
from tests.new_configs import new_style

pytestmark = pytest.mark.slow

BACKBONE = dict(_delete_=True, type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, out_indices=(0, 1, 2, 3))
REP_LK_NET = dict(large_kernel_sizes=[9, 7, 5, 3], layers=[1, 1, 1, 1], channels=[16, 32, 32, 32], small_kernel=3)
REP_VGG = dict(num_blocks=[1, 1, 1, 2], width_factor=[0.25] * 4, group_layer_map=None, se_cfg=None)
REP_VGG = dict(type="RepVGG", arch=REP_VGG, out_indices=(3,))
MOBILE_ONE = dict(num_blocks=[1, 1, 1, 2], width_factor=[0.25] * 4, num_conv_branches=[2] * 4, num_se_blocks=[0] * 4)
TIMM = dict(type="TIMMBackbone", model_name="mobileone_s0")
CLASSIFIERS = {
    "RepVGG": REP_VGG,
    "MobileOne": dict(type="MobileOne", arch=MOBILE_ONE, out_indices=(3,)),
    "RepLKNet": dict(type="RepLKNet", arch=dict(**REP_LK_NET, dw_ratio=1), out_indices=(3,)),
    "timm's MobileOne": TIMM,
}
FPN = dict(in_channels=[8, 16, 32, 64], out_channels=16)
BOXES = dict(in_channels=16, fc_out_channels=32, num_classes=3)
HEADS = dict(
    bbox_roi_extractor=dict(out_channels=16),
    mask_roi_extractor=dict(out_channels=16),
    mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=3),
)
RPN = dict(in_channels=16, feat_channels=16)
CASCADE = [dict(type="Shared2FCBBoxHead", **BOXES)] * 3
BORROWED = {
    "UperNet": (
        "mmseg::_base_/models/upernet_r50.py",
        dict(
            pretrained=None,
            decode_head=dict(in_channels=[8, 16, 32, 64], channels=16, num_classes=3, norm_cfg=dict(type="BN")),
            auxiliary_head=dict(in_channels=32, channels=16, num_classes=3, norm_cfg=dict(type="BN")),
        ),
    ),
    "RetinaNet": (
        "mmdet::_base_/models/retinanet_r50_fpn.py",
        dict(neck=FPN, bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16)),
    ),
    "Mask R-CNN": (
        "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
        dict(neck=FPN, rpn_head=RPN, roi_head=dict(bbox_head=BOXES, **HEADS)),
    ),
    "Cascade Mask R-CNN": (
        "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
        dict(neck=FPN, rpn_head=RPN, roi_head=dict(bbox_head=CASCADE, **HEADS)),
    ),
}


def write_config(folder, scope, text):
    path = folder / "config.py"
    path.write_text(f"default_scope = {scope!r}\n{text}\n")
    return path


def save_random(config, path):
    """A checkpoint for a config, with random weights and statistics."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = randomize(MODELS.build(cfg.model), torch.Generator().manual_seed(0), spread=0.1).eval()
    save_checkpoint({"state_dict": model.state_dict()}, path)
    return model


def assert_converts(config, tmp_path, way, outputs):
    """Convert a random model of a config; compare what is built from the files with it, output by output.

    Args:
        config: The config.
        tmp_path: Folder for the files.
        way: How the model can be called on images alone.
        outputs: Number of its outputs then.
    """
    model = save_random(config, tmp_path / "trained.pth")
    report = reparameterize_checkpoint(config, tmp_path / "trained.pth", tmp_path / "deploy.pth")
    whole = [d for d in report.differences if d.output.startswith(f"whole model, {way}")]
    assert len(whole) == outputs and all(d.within_tolerance for d in report.differences)
    assert report.converted and not report.changed
    assert all(any(d.output.startswith(name) for d in report.differences) for name in report.converted)
    deployed = build_model(Config.fromfile(report.config), load_from_local(report.checkpoint)["state_dict"])
    images = random_images(model, 1).float()
    with torch.no_grad():
        before, after = call_model(model, images), call_model(deployed, images)
    pairs = zip(named_tensors(after), named_tensors(before), strict=True)
    assert all(relative_error(a, b) < 1e-5 for (_, a), (_, b) in pairs)
    assert sum(isinstance(m, _BatchNorm) for m in deployed.backbone.modules()) < sum(
        isinstance(m, _BatchNorm) for m in model.backbone.modules()
    )
    return report


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_other_networks_of_mmpretrain(name, tmp_path):
    neck = dict(type="GlobalAveragePooling")
    model = dict(type="ImageClassifier", backbone=CLASSIFIERS[name], neck=neck)
    config = write_config(tmp_path, "mmpretrain", f"model = {model!r}")
    report = assert_converts(config, tmp_path, "output", outputs=1)
    assert report.parameters[1] < report.parameters[0] and report.macs[1] < report.macs[0]
    with pytest.raises(ConversionError, match="already in deploy form"):
        reparameterize_checkpoint(report.config, report.checkpoint, tmp_path / "again.pth")
    with pytest.raises(ConversionError, match=f"{report.checkpoint} is already in deploy form"):
        reparameterize_checkpoint(config, report.checkpoint, tmp_path / "again.pth")


def test_a_whole_network_of_timm_whose_state_dict_has_other_names_than_its_modules(tmp_path):
    config = write_config(tmp_path, "mmpretrain", "model = dict(type='TimmClassifier', model_name='repvit_m0_9')")
    model = save_random(config, tmp_path / "trained.pth")
    report = reparameterize_checkpoint(config, tmp_path / "trained.pth", tmp_path / "deploy.pth")
    assert report.parameters[1] < report.parameters[0] and not report.changed
    deployed = build_model(Config.fromfile(report.config), load_from_local(report.checkpoint)["state_dict"])
    images = random_images(model, 2).float()
    with torch.no_grad():
        assert relative_error(deployed(images), model(images)) < 1e-5


# Without boxes the heads of the second stage take no part.
WAYS = (("output", 1), ("output", 10), ("features", 5), ("features", 5))


@pytest.mark.parametrize("name, way", zip(BORROWED, WAYS))
def test_segmentors_and_detectors(name, way, tmp_path):
    base, settings = BORROWED[name]
    text = f"_base_ = [{base!r}]\nmodel = {dict(settings, backbone=BACKBONE)!r}"
    if name == "UperNet":
        text += "\nmodel['data_preprocessor'] = dict(size=(64, 64))"
    assert_converts(write_config(tmp_path, base[:5], text), tmp_path, *way)


def test_weights_from_the_net_are_not_fetched(tmp_path):
    backbone = dict(REP_VGG, init_cfg=dict(type="Pretrained", checkpoint="http://0.0.0.0/x.pth"))
    config = write_config(tmp_path, "mmpretrain", f"model = dict(type='ImageClassifier', backbone={backbone!r})")
    save_random(config, tmp_path / "trained.pth")
    report = reparameterize_checkpoint(config, tmp_path / "trained.pth", tmp_path / "deploy.pth")
    assert "init_cfg" not in Config.fromfile(report.config).model.backbone


def test_settings_of_the_training_make_the_model_fit(tmp_path):
    backbone = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64)
    model = dict(type="ImageClassifier", backbone=backbone, head=dict(type="LinearClsHead", in_channels=64))
    text = f"model = {model!r}\nmodel['head']['num_classes'] = "
    save_random(write_config(tmp_path, "mmpretrain", f"{text}4"), tmp_path / "trained.pth")
    config = write_config(tmp_path, "mmpretrain", f"{text}5")
    with pytest.raises(ValueError, match=r"of another shape: head\.fc\.weight"):
        reparameterize_checkpoint(config, tmp_path / "trained.pth", tmp_path / "deploy.pth")
    options = {"model.head.num_classes": 4}
    report = reparameterize_checkpoint(config, tmp_path / "trained.pth", tmp_path / "deploy.pth", cfg_options=options)
    assert Config.fromfile(report.config).model.head.num_classes == 4


def test_a_config_in_pure_python_is_written_with_names_that_build_the_same(tmp_path):
    base, settings = BORROWED["Mask R-CNN"]
    cfg = read_config(base, {"default_scope": "mmdet"})
    cfg.merge_from_dict(dict(model=dict(backbone=BACKBONE, **settings)))
    cfg.dump(tmp_path / "old.py")
    model = save_random(tmp_path / "old.py", tmp_path / "trained.pth")
    (tmp_path / "new.py").write_text(new_style(cfg))
    report = reparameterize_checkpoint(tmp_path / "new.py", tmp_path / "trained.pth", tmp_path / "deploy.pth")
    written = read_config(report.config)
    assert framework_of(written) == "mmdet" and written.default_scope is None
    assert written.model.test_cfg.rpn.nms.type == "nms"
    assert written.model.roi_head.bbox_roi_extractor.roi_layer.type == "RoIAlign"
    assert written.model.roi_head.bbox_head.loss_bbox.type == "mmdet.L1Loss"
    deployed = build_model(written, load_from_local(report.checkpoint)["state_dict"])
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1), batch_input_shape=(64, 64))
    )
    images = random_images(model, 1).float()
    with torch.no_grad():
        before, after = (m(images, [sample.clone()], mode="predict")[0].pred_instances for m in (model, deployed))
    assert len(after) == len(before) and relative_error(after.scores, before.scores) < 1e-5


class WithoutValues(nn.Module):
    """A network without values that is called as a classifier is."""

    def __init__(self, arch, img_size):
        super().__init__()
        with torch.device("meta"):
            self.backbone = RepMLPNet(arch, img_size, deploy=True)

    def forward(self, images, mode):
        return self.backbone(images.to("meta"))


@pytest.mark.parametrize(
    "arch, size, gmacs",
    [("T", 224, 2.80), ("T", 256, 4.25), ("B", 224, 6.66), ("B", 256, 9.62), ("D", 256, 8.61), ("L", 256, 11.58)],
)
def test_macs_are_the_published_ones(arch, size, gmacs):
    assert count_macs(WithoutValues(arch, size).eval()) / 1e9 == pytest.approx(gmacs, abs=0.01)
