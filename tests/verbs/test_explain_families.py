# SPDX-License-Identifier: Apache-2.0
"""Advice on configs of other people: followed step by step, it makes each of them run with another backbone."""

import copy

import pytest
from mmengine.config import Config

from dev.sweep.families import find_families, swap_backbone
from dev.sweep.trial import compute_loss, predict, run_control
from mmrepmlp.verbs.explain import ExplainedError, explained
from mmrepmlp.verbs.model import build_untrained
from tests.fixtures import iter_small_configs

FAMILIES = {
    "mmpretrain": ["convnext", "csra", "resnet", "swin_transformer", "poolformer", "seresnet"],
    "mmseg": ["ann", "deeplabv3plus", "fastfcn", "ocrnet", "sem_fpn", "segformer", "upernet", "cgnet", "mask2former"],
    "mmdet": ["atss", "cascade_rcnn", "centernet", "condinst", "detr", "dino", "faster_rcnn", "rpn", "solo", "yolact"]
    + ["yolo", "yolox"],
}


def value_of(cfg: Config, setting: str) -> object:
    part = cfg
    for key in setting.split("."):
        part = part[int(key)] if isinstance(part, list) else part.get(key)
    return part


@pytest.mark.slow
@pytest.mark.parametrize("package, family", [(package, name) for package in FAMILIES for name in FAMILIES[package]])
def test_families_of_configs(package, family, monkeypatch):
    monkeypatch.setattr("dev.sweep.trial.SIDES", (64, 128, 224))
    _, original = next(iter_small_configs(package, find_families(package)[family]))
    right = copy.deepcopy(original)
    _, maps, side = run_control(original)

    def run(cfg):
        compute_loss(build_untrained(cfg).train(), cfg, side)

    changed = swap_backbone(right, maps, side, run)
    predict(build_untrained(right).eval(), side)
    assert changed
    for setting, value in changed.items():
        if setting == "model.neck" or setting.endswith(".channels"):  # what comes along with in_channels
            continue
        wrong = copy.deepcopy(right)
        wrong.merge_from_dict({setting: value_of(original, setting)})
        if setting.replace("in_channels", "channels") in changed:
            wrong.merge_from_dict({setting.replace("in_channels", "channels"): value_of(original, setting)})
        with pytest.raises(ExplainedError) as error, explained(wrong):
            run(wrong)
        assert error.value.options.get(setting) == value
