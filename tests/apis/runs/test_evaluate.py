# SPDX-License-Identifier: Apache-2.0
import mmengine
import pytest
import torch

from mmrepmlp.apis import evaluate
from mmrepmlp.checkpoint import CheckpointError
from tests.fixtures import CONFIG


@pytest.mark.slow
def test_both_forms_evaluate_to_the_same(trained, tmp_path):
    predictions = {}
    for deploy in (False, True):
        out = str(tmp_path / f"{deploy}.pkl")
        metrics = evaluate(
            CONFIG, trained.checkpoint, str(tmp_path), out=out, deploy=deploy, cfg_options=trained.options
        )
        predictions[deploy] = mmengine.load(out)
        right = [int(p["pred_label"]) == int(p["gt_label"]) for p in predictions[deploy]]
        assert metrics["accuracy/top1"] == pytest.approx(100 * sum(right) / 360)
    for training, deployed in zip(predictions[False], predictions[True], strict=True):
        assert training["img_path"] == deployed["img_path"]
        torch.testing.assert_close(training["pred_score"], deployed["pred_score"], rtol=0, atol=1e-5)


def test_what_cannot_run_is_said_before_the_evaluation(tmp_path, options):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="empty"):
        evaluate(CONFIG, tmp_path / "empty.pth", str(tmp_path), cfg_options=options)
    with pytest.raises(ValueError, match="No checkpoint is given, and .* has none in load_from"):
        evaluate(CONFIG, work_dir=str(tmp_path), cfg_options=options)
    with pytest.raises(ValueError, match="out='a.json': predictions are written as a pickle file"):
        evaluate(CONFIG, work_dir=str(tmp_path), out="a.json", cfg_options=options)
    with pytest.raises(ValueError, match="The config sets no test_evaluator: nothing to run"):
        evaluate(CONFIG, work_dir=str(tmp_path), cfg_options={**options, "test_evaluator": None})
