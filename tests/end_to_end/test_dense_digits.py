# SPDX-License-Identifier: Apache-2.0
"""Segmentation and detection of digits, in short: the configs, both forms, the comparison, the picture."""

from dataclasses import dataclass
from pathlib import Path

import mmcv
import mmengine
import numpy as np
import pytest

from mmrepmlp.apis import compare_forms, draw_predictions, evaluate, reparameterize_checkpoint, train
from mmrepmlp.apis.analysis.predictions import mean_iou
from mmrepmlp.datasets import write_detection_scenes, write_segmentation_scenes
from tests.apis.conftest import ROOT
from tests.helpers import render

pytestmark = pytest.mark.slow

CONFIGS = dict(
    seg="upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py",
    det="retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py",
)
WRITERS = dict(seg=write_segmentation_scenes, det=write_detection_scenes)
LENGTH = dict(seg={"train_cfg.max_iters": 3}, det={"train_cfg.max_epochs": 1, "model.test_cfg.score_thr": 0.0})


@dataclass
class ShortRun:
    """A config shortened to a few steps on a few scenes, and what came of it."""

    task: str
    config: str
    checkpoint: Path
    folder: Path


@pytest.fixture(scope="module", params=["seg", "det"])
def short_run(request, tmp_path_factory) -> ShortRun:
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = folder / "scenes"
    WRITERS[task](data, counts=dict(train=32, val=6))
    settings = {f"{split}_dataloader.dataset.data_root": str(data) for split in ("train", "val", "test")}
    settings |= {f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")}
    settings |= {f"{split}_dataloader.persistent_workers": False for split in ("train", "val", "test")}
    settings |= {"model.backbone.init_cfg": None, "default_hooks.checkpoint.interval": 1, **LENGTH[task]}
    if task == "det":
        settings |= {f"{split}_evaluator.ann_file": str(data / "annotations/val.json") for split in ("val", "test")}
    cfg = mmengine.Config.fromfile(ROOT / "configs" / CONFIGS[task])
    cfg.merge_from_dict(settings)
    config = str(folder / "config.py")
    cfg.dump(config)
    train(config, work_dir=str(folder / "run"))
    return ShortRun(task, config, Path((folder / "run/last_checkpoint").read_text()), folder)


def test_both_forms_predict_the_same(short_run, tmp_path):
    report = reparameterize_checkpoint(short_run.config, short_run.checkpoint, tmp_path / "deploy.pth")
    forms = [(short_run.config, short_run.checkpoint), (report.config, report.checkpoint)]
    outs = [str(tmp_path / f"{i}.pkl") for i in range(2)]
    metrics = [evaluate(*form, str(tmp_path / "run"), out=out) for form, out in zip(forms, outs)]
    comparison = compare_forms(*zip(*forms), outs, repeats=1)
    agreement = comparison.agreement
    assert comparison.equal and agreement.same / agreement.total > 0.99  # ties change places
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
    names = dict(seg={"mIoU": "mIoU"}, det={"box AP": "coco/bbox_mAP", "box AP50": "coco/bbox_mAP_50"})[short_run.task]
    for ours, theirs in names.items():
        scale, digits = (1, 0.006) if short_run.task == "seg" else (100, 0.06)
        assert agreement.metrics[ours][0] == pytest.approx(scale * metrics[0][theirs], abs=digits)
        assert ours in render(comparison.table())
    assert "seg_logits" not in mmengine.load(outs[0])[0]


def test_picture_shows_image_truth_and_prediction(short_run, tmp_path):
    draw_predictions(short_run.config, short_run.checkpoint, tmp_path / "picture.png", images=2)
    picture = mmcv.imread(str(tmp_path / "picture.png"))
    assert picture.shape == (24 + 4 + 2 * (240 + 4), 3 * (304 + 4), 3)
    image = mmcv.imread(sorted(str(p) for p in (short_run.folder / "scenes").rglob("val/00000.jpg"))[0])
    first, truth = (picture[28 : 28 + 240, x : x + 304] for x in (0, 308))
    assert (first == image.repeat(2, 0).repeat(2, 1)).all()
    assert (truth != first).any()


def test_mean_iou_averages_over_the_classes_that_occur():
    truth, guess = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 3])
    assert mean_iou(truth, guess) == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)
