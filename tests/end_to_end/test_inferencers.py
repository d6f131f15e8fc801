# SPDX-License-Identifier: Apache-2.0
"""The inferencers of the three frameworks, in processes that never import this package by themselves."""

import cv2
import numpy as np
import pytest

from mmrepmlp.apis import reparameterize_checkpoint
from tests.end_to_end.commands import run_script

pytestmark = pytest.mark.slow

CLASSIFY = """
import sys
assert "mmrepmlp" not in sys.modules
config, checkpoint, image = sys.argv[1:]
from mmpretrain import ImageClassificationInferencer, get_model
result = ImageClassificationInferencer(config, pretrained=checkpoint, device="cpu")(image)[0]
model = get_model(config, pretrained=checkpoint, device="cpu")
assert ImageClassificationInferencer(model)(image)[0]["pred_label"] == result["pred_label"]
assert abs(result["pred_scores"].sum() - 1) < 1e-5
"""
SEGMENT = """
import sys
assert "mmrepmlp" not in sys.modules
config, checkpoint, image = sys.argv[1:]
from mmseg.apis import MMSegInferencer, inference_model, init_model
result = MMSegInferencer(config, weights=checkpoint, device="cpu")(image, return_datasamples=True)
model = init_model(config, checkpoint, device="cpu")
assert (inference_model(model, image).pred_sem_seg.data == result.pred_sem_seg.data).all()
"""
DETECT = """
import sys
assert "mmrepmlp" not in sys.modules
config, checkpoint, image = sys.argv[1:]
from mmdet.apis import DetInferencer, inference_detector, init_detector
result = DetInferencer(config, weights=checkpoint, device="cpu")(image, pred_score_thr=0, no_save_vis=True)
model = init_detector(config, checkpoint, device="cpu")
assert len(inference_detector(model, image).pred_instances.scores) == len(result["predictions"][0]["scores"])
"""
# Without a config the checkpoint's own is read, after the checkpoint.
DETECT_ALONE = """
import sys
assert "mmrepmlp" not in sys.modules
config, checkpoint, image = sys.argv[1:]
if config == "import":
    import mmrepmlp
from mmdet.apis import DetInferencer
DetInferencer(weights=checkpoint, device="cpu")(image, no_save_vis=True)
"""
SCRIPTS = dict(cls=CLASSIFY, seg=SEGMENT, det=DETECT, alone=DETECT_ALONE)


def infer(*runs, folder):
    """Run scripts on configs and checkpoints, each in a process of its own, in which the frameworks are imported."""
    cv2.imwrite(str(folder / "image.png"), np.random.randint(0, 255, (120, 152, 3), np.uint8))
    for name, text in SCRIPTS.items():
        (folder / f"{name}.py").write_text(text)
    for name, config, checkpoint in runs:
        done = run_script(folder / f"{name}.py", config, checkpoint, folder / "image.png")
        assert done.returncode == 0, (done.args, done.stderr[-2000:])


def test_classifiers(trained, config, tmp_path):
    report = reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "deploy.pth")
    runs = [("cls", config, trained.checkpoint), ("cls", report.config, report.checkpoint)]
    infer(*runs, folder=tmp_path)


def test_segmentors_and_detectors(short_run, tmp_path):
    task, checkpoint = short_run.task, short_run.checkpoint
    report = reparameterize_checkpoint(short_run.config, checkpoint, tmp_path / "deploy.pth")
    runs = [(task, short_run.config, checkpoint), (task, report.config, report.checkpoint)]
    if task == "det":
        runs += [("alone", "import", checkpoint), ("alone", "none", report.checkpoint)]
    infer(*runs, folder=tmp_path)
