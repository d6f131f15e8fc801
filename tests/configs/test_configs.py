# SPDX-License-Identifier: Apache-2.0
import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.datasets import ImageNet  # noqa: F401  registers the transforms
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample

import mmrepmlp
from mmrepmlp.models.repmlpnet.network import resolve_arch
from mmrepmlp.quantization import QuantizedRepMLPNet
from mmrepmlp.verbs.model import build_untrained
from tests.helpers import relative_error

CONFIGS = Path(__file__).parents[2] / "configs/repmlpnet"
IMAGENET = {path.stem.split("_")[0][-4:]: path for path in CONFIGS.glob("repmlpnet-????_8xb32_in1k.py")}


def load(path: Path) -> Config:
    return Config.fromfile(path)


def build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build({"data_preprocessor": cfg.data_preprocessor, **cfg.model})


def test_there_is_one_for_each_released_model():
    assert sorted(IMAGENET) == ["b224", "b256", "d256", "l256", "t224", "t256"]


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_imagenet_recipe(name):
    cfg = load(IMAGENET[name])
    size = int(name[1:])
    assert cfg.model.backbone.arch == name[0].upper() and cfg.model.backbone.img_size == size
    assert cfg.optim_wrapper.optimizer.type == "AdamW" and cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
    assert cfg.optim_wrapper.optimizer.lr == 1e-3 and cfg.optim_wrapper.optimizer.weight_decay == 0.1
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 256
    warm_up, cosine = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == cosine.end == 100 and warm_up.end == cosine.begin == 10
    assert warm_up.start_factor * cfg.optim_wrapper.optimizer.lr == pytest.approx(5e-7) and cosine.eta_min == 0
    assert [a.alpha for a in cfg.model.train_cfg.augments] == [0.4, 1.0]
    assert cfg.model.head.loss.label_smooth_val == 0.1

    pipeline = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(pipeline) == ["LoadImageFromFile", "RandomResizedCrop", "RandomFlip", "RandAugment", "PackInputs"]
    assert pipeline["RandAugment"].magnitude_level == 15
    image = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8).numpy()
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            steps = [TRANSFORMS.build(step) for step in loader.dataset.pipeline if step.type != "LoadImageFromFile"]
        results = dict(img=image, img_shape=(300, 400), ori_shape=(300, 400), gt_label=1)
        for step in steps:
            results = step(results)
        assert results["inputs"].shape == (3, size, size)


@pytest.mark.parametrize("name", ["t224_8xb32", "l256_8xb32"])
def test_norms_and_biases_do_not_decay(name):
    cfg = load(CONFIGS / f"repmlpnet-{name}_in1k.py")
    with torch.device("meta"):
        model = build(cfg)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) is (parameter.dim() > 1), name


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_trains_predicts_and_converts(path):
    cfg = load(path)
    arch = dict(resolve_arch(cfg.model.backbone.arch), depths=[1, 1, 1, 1])  # others repeat them
    cfg.model.backbone.update(arch=arch, img_size=64)
    model = build(cfg)
    classes = cfg.model.head.num_classes
    batch = dict(
        inputs=torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(i) for i in range(2)],
    )
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    losses = model(**data, mode="loss")
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.eval()
    before = model.test_step(copy.deepcopy(batch))
    mmrepmlp.switch_to_deploy(model)
    after = model.test_step(copy.deepcopy(batch))
    for a, b in zip(before, after):
        assert a.pred_score.shape == (classes,)
        assert relative_error(b.pred_score, a.pred_score) < 1e-4 and a.pred_label == b.pred_label


@pytest.mark.parametrize("path", sorted(CONFIGS.with_name("quantization").glob("*.py")), ids=lambda path: path.stem)
def test_quantization_configs_round_at_the_end_of_training(path):
    cfg = load(path)
    backbone = build_untrained(cfg).backbone
    assert isinstance(backbone, QuantizedRepMLPNet) and not backbone.fake_quantization and not backbone.deploy
    (hook,) = [hook for hook in cfg.custom_hooks if hook.type == "mmrepmlp.FakeQuantizeHook"]
    length = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters
    assert cfg.param_scheduler[-1].end == length
    # What continues a training rounds from the start.
    assert hook.get("begin", 0) == 0 if cfg.load_from else 0 < hook.begin < length
