# SPDX-License-Identifier: Apache-2.0
"""The configs of RepMLP-ResNet: the paper's recipes, and models that train, predict and convert."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmpretrain.datasets import ImageNet  # noqa: F401  registers the transforms
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules as register_mmseg
from torch import nn

import mmrepmlp
from mmrepmlp.models import RepMLPv1Block
from mmrepmlp.verbs.model import build_untrained
from tests.helpers import relative_error

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGENET = sorted((CONFIGS / "repmlp_resnet").glob("*.py"))
(PSPNET,) = (CONFIGS / "pspnet").glob("*.py")
SLIM = dict(base_channels=8)  # an eighth of the width


def blocks_of(model: nn.Module) -> list[RepMLPv1Block]:
    return [module for module in model.modules() if isinstance(module, RepMLPv1Block)]


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_imagenet_recipe(path):
    cfg = Config.fromfile(path)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.1, 0.9, 1e-4)
    assert (
        cfg.param_scheduler.type == "CosineAnnealingLR" and cfg.train_cfg.max_epochs == cfg.param_scheduler.T_max == 100
    )
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 256
    assert cfg.model.train_cfg.augments.type == "Mixup" and cfg.model.head.loss.use_soft
    pipeline = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert pipeline == ["LoadImageFromFile", "RandomResizedCrop", "RandomFlip", "AutoAugment", "PackInputs"]
    size = cfg.model.backbone.img_size
    assert size == (320 if "320px" in path.stem else 224)
    image = torch.randint(0, 256, (400, 500, 3), dtype=torch.uint8).numpy()
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            steps = [TRANSFORMS.build(step) for step in loader.dataset.pipeline if step.type != "LoadImageFromFile"]
        results = dict(img=image, img_shape=(400, 500), ori_shape=(400, 500), gt_label=1)
        for step in steps:
            results = step(results)
        assert results["inputs"].shape == (3, size, size)


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_classifiers_train_predict_and_convert(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(SLIM)
    cfg.model.head.update(in_channels=256)
    model, size = build_untrained(cfg).train(), cfg.model.backbone.img_size
    inputs = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    batch = dict(inputs=inputs, data_samples=[DataSample().set_gt_label(i) for i in range(2)])
    losses = model(**model.data_preprocessor(copy.deepcopy(batch), training=True), mode="loss")
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = model.eval().test_step(copy.deepcopy(batch))
    mmrepmlp.switch_to_deploy(model)
    for a, b in zip(before, model.test_step(copy.deepcopy(batch)), strict=True):
        assert relative_error(b.pred_score, a.pred_score) < 1e-4 and a.pred_label == b.pred_label


def test_the_recipe_of_the_pspnet():
    cfg = Config.fromfile(PSPNET)
    register_mmseg(init_default_scope=False)
    with torch.device("meta"):
        backbone = build_untrained(cfg).backbone
    blocks = {stage: blocks_of(backbone.get_submodule(stage)) for stage in ("stage2", "stage3")}
    for stage, reduction in (("stage2", 4), ("stage3", 8)):
        for block in blocks[stage]:
            features = 81 * block.in_channels
            assert block.map_size == (90, 90) and (block.h, block.w) == (10, 10)
            assert block.fc1_fc2.fc1.weight.shape == (features // reduction, features)
    assert [(s.stride, s.dilation) for s in (backbone.stage4[0].conv2.conv, backbone.stage3[0].conv2.conv)] == [
        ((1, 1), (4, 4)),
        ((1, 1), (1, 1)),
    ]
    assert cfg.optim_wrapper.optimizer.lr == 0.01 and cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    (poly,) = cfg.param_scheduler
    assert poly.power == 0.9 and poly.end == cfg.train_cfg.max_iters and poly.eta_min == 0
    epoch = -(-2975 // (8 * cfg.train_dataloader.batch_size))
    assert cfg.train_cfg.max_iters == 200 * epoch
    crop = next(step.crop_size for step in cfg.train_dataloader.dataset.pipeline if step.type == "RandomCrop")
    assert crop == cfg.model.test_cfg.crop_size == cfg.model.data_preprocessor.size == cfg.model.backbone.img_size
    assert cfg.model.test_cfg.mode == "slide"


def test_what_it_starts_from_is_the_pretrained_network_but_for_the_global_perceptrons():
    pretrained = Config.fromfile(CONFIGS / "repmlp_resnet/repmlp-res50-bottleneck_8xb32_in1k-320px.py")
    cfg = Config.fromfile(PSPNET)
    assert cfg.model.backbone.init_cfg.checkpoint == f"work_dirs/{Path(pretrained.filename).stem}/epoch_100.pth"
    shapes = []
    for settings in (pretrained.model.backbone, cfg.model.backbone):
        with torch.device("meta"):
            backbone = MODELS.build({**settings, "init_cfg": None})
        shapes.append({name: value.shape for name, value in backbone.state_dict().items()})
    assert shapes[0].keys() == shapes[1].keys()
    assert all(
        (shapes[0][name] != shapes[1][name]) == (".fc1_fc2." in name) for name in shapes[0] if "fc2.bias" not in name
    )


def test_the_pspnet_trains_predicts_and_converts():
    cfg, side = Config.fromfile(PSPNET), 233  # maps of 30 x 30 pixels, 9 partitions
    register_mmseg(init_default_scope=False)
    cfg.model.backbone.update(SLIM, img_size=side, norm_cfg=dict(type="BN"))
    for head, channels in ((cfg.model.decode_head, 256), (cfg.model.auxiliary_head, 128)):
        head.update(in_channels=channels, channels=16, norm_cfg=dict(type="BN"))
    cfg.model.data_preprocessor.size = cfg.model.test_cfg.crop_size = (side, side)
    cfg.model.test_cfg.stride = (150, 150)
    model = build_untrained(cfg).train()

    def batch(height: int, width: int) -> dict:
        samples = []
        for _ in range(2):
            sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, height, width)))
            samples.append(sample)
        return dict(inputs=list(torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)), data_samples=samples)

    data = model.data_preprocessor(batch(side, side), training=True)
    losses = model(**data, mode="loss")
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    model.eval()
    data = model.data_preprocessor(batch(240, 300), training=False)  # windows of the size of the crop
    with torch.no_grad():
        before = [sample.seg_logits.data for sample in model(**copy.deepcopy(data), mode="predict")]
        mmrepmlp.switch_to_deploy(model)
        after = [sample.seg_logits.data for sample in model(**copy.deepcopy(data), mode="predict")]
        assert all(relative_error(a, b) < 1e-4 for a, b in zip(after, before, strict=True))
        model.test_cfg.mode = "whole"
        with pytest.raises(ValueError, match="the fully connected layers of its global perceptron"):
            model(**data, mode="predict")
