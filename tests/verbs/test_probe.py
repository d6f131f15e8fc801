# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrepmlp.verbs.probe import Misfit, run_probe
from tests.conftest import TINY
from tests.fixtures import CONFIG, DENSE_CONFIGS, ROOT


class HalvingNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, ::2]


@MODELS.register_module()
class NormNeck(nn.Module):
    """Layers that do not look at what they get on the meta device, or at least not in every version of torch."""

    def __init__(self, layer: str, channels: int) -> None:
        super().__init__()
        layers = dict(
            batch=nn.BatchNorm2d, group=lambda n: nn.GroupNorm(1, n), instance=nn.InstanceNorm2d, half=HalvingNorm
        )
        self.norm = layers[layer](channels, affine=True) if layer == "instance" else layers[layer](channels)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, maps: tuple) -> tuple:
        return tuple(self.pool(self.norm(x)).flatten(1) for x in maps)


def with_neck(layer: str, channels: int) -> Config:
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch, cfg.model.head.in_channels = TINY, 64
    cfg.model.neck = dict(type="NormNeck", layer=layer, channels=channels)
    return cfg


@pytest.mark.parametrize(
    "config", [CONFIG, ROOT / "configs" / DENSE_CONFIGS["seg"], ROOT / "configs" / DENSE_CONFIGS["det"]]
)
def test_shapes_are_enough_where_all_fits(config):
    probe = run_probe(Config.fromfile(config))
    assert probe.misfit is None and all(p.is_meta for p in probe.model.parameters())
    assert {"backbone", "backbone.stages.2"} < probe.passed and all(x.is_meta for x in probe.outputs["backbone"])


def test_a_batch_norm_of_somebody_else_computes_as_it_does():
    cfg = with_neck("half", 64)
    cfg.model.head.in_channels = 32
    probe = run_probe(cfg)
    assert "head.fc" in probe.passed and probe.misfit is None and all(p.is_meta for p in probe.model.parameters())


def test_a_model_that_reads_numbers_is_tried_with_them():
    probe = run_probe(Config.fromfile(ROOT / "configs/faster_rcnn/faster-rcnn_repmlpnet-b224_fpn_1x_coco.py"))
    assert probe.misfit is None and not any(p.is_meta for p in probe.model.parameters())
    assert "roi_head.bbox_head.fc_cls" in probe.passed


@pytest.mark.parametrize("layer", ["batch", "group", "instance"])
def test_a_norm_of_other_channels_is_found(layer):
    assert run_probe(with_neck(layer, 64)).misfit is None
    assert run_probe(with_neck(layer, 60)).misfit == Misfit("neck.norm", "channels", 60, 64)
