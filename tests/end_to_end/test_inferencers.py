# SPDX-License-Identifier: Apache-2.0
"""The inferencers of the three frameworks, in processes that never import this package by themselves."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from mmrepmlp.apis import reparameterize_checkpoint

pytestmark = pytest.mark.slow

CLASSIFY = """
import sys
config, checkpoint, image = sys.argv[1:]
from mmpretrain import ImageClassificationInferencer, get_model
result = ImageClassificationInferencer(config, pretrained=checkpoint, device="cpu")(image)[0]
model = get_model(config, pretrained=checkpoint, device="cpu")
assert ImageClassificationInferencer(model)(image)[0]["pred_label"] == result["pred_label"]
assert abs(result["pred_scores"].sum() - 1) < 1e-5
"""
SEGMENT = """
import sys
config, checkpoint, image = sys.argv[1:]
from mmseg.apis import MMSegInferencer, inference_model, init_model
result = MMSegInferencer(config, weights=checkpoint, device="cpu")(image, return_datasamples=True)
model = init_model(config, checkpoint, device="cpu")
assert (inference_model(model, image).pred_sem_seg.data == result.pred_sem_seg.data).all()
"""
DETECT = """
import sys
config, checkpoint, image = sys.argv[1:]
from mmdet.apis import DetInferencer, inference_detector, init_detector
result = DetInferencer(config, weights=checkpoint, device="cpu")(image, pred_score_thr=0, no_save_vis=True)
model = init_detector(config, checkpoint, device="cpu")
assert len(inference_detector(model, image).pred_instances.scores) == len(result["predictions"][0]["scores"])
"""
# Without a config the checkpoint's own is read, after the checkpoint.
DETECT_ALONE = """
import sys
config, checkpoint, image = sys.argv[1:]
if config == "import":
    import mmrepmlp
from mmdet.apis import DetInferencer
DetInferencer(weights=checkpoint, device="cpu")(image, no_save_vis=True)
"""
SCRIPTS = dict(cls=CLASSIFY, seg=SEGMENT, det=DETECT, alone=DETECT_ALONE)


def infer(task, config, checkpoint, tmp_path):
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.random.randint(0, 255, (120, 152, 3), np.uint8))
    (tmp_path / "script.py").write_text(SCRIPTS[task])
    command = [sys.executable, "-W", "ignore", "script.py", str(config), str(checkpoint), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_classifiers(trained, config, tmp_path):
    infer("cls", config, trained.checkpoint, tmp_path)
    report = reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "deploy.pth")
    infer("cls", report.config, report.checkpoint, tmp_path)


def test_segmentors_and_detectors(short_run, tmp_path):
    infer(short_run.task, short_run.config, short_run.checkpoint, tmp_path)
    report = reparameterize_checkpoint(short_run.config, short_run.checkpoint, tmp_path / "deploy.pth")
    infer(short_run.task, report.config, report.checkpoint, tmp_path)
    if short_run.task == "det":
        infer("alone", "import", short_run.checkpoint, tmp_path)
        infer("alone", "none", report.checkpoint, tmp_path)
