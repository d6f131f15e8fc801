# SPDX-License-Identifier: Apache-2.0
"""Every segmentation and detection config: its model builds, trains, predicts and converts; its data is documented."""

import argparse
import copy
import re
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules as register_mmdet
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules as register_mmseg
from torch import nn

import mmrepmlp
from mmrepmlp.models.repmlpnet.network import resolve_arch
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.explain_data import local_paths
from mmrepmlp.verbs.model import iter_dicts
from tests.fixtures import DENSE_CONFIGS, LIMITS
from tests.helpers import relative_error

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*/*.py")
    if "_repmlpnet-" in path.stem
    and "mini" not in path.stem
    and path.parent.name not in ("quantization", "compression")
)
# One for each network and way to test: others differ in their arch, their data, their sizes and their schedules.
DISTINCT = list({(path.stem.split("_")[0], path.stem.endswith("-slide")): path for path in CONFIGS}.values())
SIDE = 96  # pixels, of the images here
NAMES = {
    "mmseg": r"upernet_repmlpnet-\w+_\d+xb\d+-\d+k_[a-z0-9]+-\d+x\d+(-slide|_layer-decay)?",
    "mmdet": r"(retinanet|faster-rcnn|mask-rcnn|cascade-mask-rcnn)_repmlpnet-\w+_fpn_1x_coco",
}


def build(cfg: Config) -> nn.Module:
    {"mmseg": register_mmseg, "mmdet": register_mmdet}[cfg.default_scope](init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def compute_in_double(backbone: nn.Module) -> None:
    """Let a backbone compute in float64, so that no rounding of its own reorders what the heads sort by score."""
    backbone.double()
    backbone.register_forward_pre_hook(lambda module, images: images[0].double())
    backbone.register_forward_hook(lambda module, images, maps: tuple(map.float() for map in maps))


def shrink(model: dict) -> None:
    """Leave a unit in each stage, with small tiles, narrow heads and few boxes: what heads see of a backbone stays."""
    model.backbone.arch = dict(resolve_arch(model.backbone.arch), depths=[1, 1, 1, 1])
    model.backbone.img_size = 64
    for head in (model[name] for name in ("decode_head", "auxiliary_head") if name in model):
        head.channels = 16
    numbers = dict(LIMITS, nms_pre=100, max_per_img=50, num=32)  # of boxes to sort, to propose, and to sample
    for part in iter_dicts(model):
        part.update({name: number for name, number in numbers.items() if name in part})


def random_batch(cfg: Config) -> dict:
    torch.manual_seed(0)
    if cfg.default_scope == "mmdet":
        return demo_mm_inputs(2, [(3, SIDE, SIDE)] * 2, num_classes=80, with_mask=True, use_box_type=True)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, cfg.model.decode_head.num_classes, (1, SIDE, SIDE)))
        samples.append(sample)
    return dict(inputs=list(torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)), data_samples=samples)


def run(model: nn.Module, batch: dict, mode: str) -> object:
    data = model.data_preprocessor(copy.deepcopy(batch), training=mode == "loss")
    return model(**data, mode=mode)


def flatten(predictions: list) -> list[torch.Tensor]:
    """The tensors of all samples' predictions."""
    if "seg_logits" in predictions[0]:
        return [sample.seg_logits.data for sample in predictions]
    fields = ("bboxes", "scores", "labels")
    return [sample.pred_instances[field] for sample in predictions for field in fields]


@pytest.mark.slow
@pytest.mark.parametrize("distinct", DISTINCT, ids=lambda path: path.stem)
def test_it_trains_predicts_and_converts(distinct):
    cfg = Config.fromfile(distinct)
    shrink(cfg.model)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    else:
        # An untrained head is sure of nothing.
        cfg.model.test_cfg.get("rcnn", cfg.model.test_cfg).update(score_thr=0.0, max_per_img=10)
    model = build(cfg)
    compute_in_double(model.backbone)
    batch = random_batch(cfg)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.forward = lambda x, m=module: nn.BatchNorm2d.forward(m, x)  # what one process makes of it
            module._check_input_dim = lambda x: None

    model.train()
    losses = run(model, batch, "loss")
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k)
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)

    model.eval()
    with torch.no_grad():
        before = flatten(run(model, batch, "predict"))
        mmrepmlp.switch_to_deploy(model)
        assert model.backbone.deploy
        after = flatten(run(model, batch, "predict"))
    assert before[0].numel()
    for a, b in zip(before, after, strict=True):
        assert relative_error(b, a) < 1e-5 if a.is_floating_point() else torch.equal(a, b)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def cfg(path) -> Config:
    return Config.fromfile(path)


@pytest.fixture(scope="module")
def model(cfg) -> nn.Module:
    with torch.device("meta"):
        return build(cfg).eval()


def test_its_name_and_its_data_are_as_its_framework_has_them(path, cfg):
    assert re.fullmatch(NAMES[cfg.default_scope], path.stem)
    assert cfg.model.backbone.type == "mmrepmlp.RepMLPNet" and "_delete_" not in cfg.model.backbone
    arch, size = re.search(r"repmlpnet-([a-z])(\d+)", path.stem).groups()
    assert cfg.model.backbone.arch == arch.upper() and cfg.model.backbone.img_size == int(size)
    documented = (ROOT / "docs/datasets.md").read_text()
    dataset = cfg.train_dataloader.dataset
    for part in dataset.get("datasets", [dataset]):
        for _, file in local_paths(part):
            assert file.rstrip("/") in documented, file
    if cfg.default_scope == "mmseg":
        assert_images_of_any_size_are_validated(cfg)


def assert_images_of_any_size_are_validated(cfg):
    """mmsegmentation takes several in a batch only if they have one size."""
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1


def test_scenes_of_any_size_are_validated():
    assert_images_of_any_size_are_validated(Config.fromfile(ROOT / "configs" / DENSE_CONFIGS["seg"]))


def test_neck_and_heads_take_what_its_backbone_gives(cfg, model):
    side = cfg.model.backbone.img_size
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, side, side, device="meta"))
        if cfg.default_scope == "mmseg":
            logits = model.decode_head(maps), model.auxiliary_head(maps)
            assert {x.size(1) for x in logits} == {cfg.model.decode_head.num_classes}
        else:
            assert {x.size(1) for x in model.neck(maps)} == {cfg.model.neck.out_channels}


def test_norms_and_biases_do_not_decay(path, cfg, model):
    assert cfg.optim_wrapper.optimizer.type == "AdamW"
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.backbone.named_parameters():
        group = groups[id(parameter)]
        assert bool(group["weight_decay"]) is (parameter.dim() > 1), name
        if "layer-decay" in path.stem:
            layer, layers = model.backbone.get_layer_depth(name)
            assert group["lr"] == pytest.approx(1e-4 * 0.9 ** (layers - 1 - layer))
    if "layer-decay" in path.stem:
        assert groups[id(model.decode_head.conv_seg.weight)]["lr"] == 1e-4


SWAP = [
    "model.backbone._delete_=True",
    "model.backbone.type=mmrepmlp.RepMLPNet",
    "model.backbone.arch=T",
    "model.backbone.out_indices=0,1,2,3",
    "model.neck.in_channels=64,128,256,512",
]


def loss_of(cfg: Config) -> torch.Tensor:
    losses = run(build(cfg).train(), random_batch(cfg), "loss")
    return sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k)


def test_any_backbone_is_swapped_on_the_command_line():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    options = parser.parse_args(["--cfg-options", *SWAP]).cfg_options
    cfg = load_config("mmdet::atss/atss_r50_fpn_1x_coco.py", options)
    assert cfg.work_dir == "work_dirs/atss_r50_fpn_1x_coco" and set(cfg.model.backbone) == {
        "type",
        "arch",
        "out_indices",
    }
    assert torch.isfinite(loss_of(cfg))
    assert all(option in " ".join((ROOT / "docs/detection.md").read_text().split()) for option in (SWAP[0], SWAP[1]))


def test_any_backbone_is_swapped_by_one_more_base(tmp_path):
    (tmp_path / "config.py").write_text(f"""
_base_ = [
    "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "{ROOT}/configs/_base_/backbones/repmlpnet-b224.py",
]
model = dict(backbone=_base_.repmlpnet, neck=dict(in_channels=_base_.channels))
""")
    cfg = load_config(tmp_path / "config.py")
    assert cfg.model.backbone.type == "mmrepmlp.RepMLPNet" and "depth" not in cfg.model.backbone
    assert torch.isfinite(loss_of(cfg))
