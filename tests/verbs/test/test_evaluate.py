# SPDX-License-Identifier: Apache-2.0
import mmengine
import pytest
import torch

from mmrepmlp.apis import deploy_checkpoint, evaluate
from mmrepmlp.checkpoint import CheckpointError
from mmrepmlp.errors import MMRepMLPError
from tests.helpers import needs_export


@pytest.mark.slow
def test_both_forms_evaluate_to_the_same(trained, config, tmp_path):
    predictions, few = {}, {"test_dataloader.dataset.indices": list(range(0, 360, 4))}
    for deploy in (False, True):
        out = str(tmp_path / f"{deploy}.pkl")
        metrics = evaluate(config, trained.checkpoint, str(tmp_path), out, deploy, cfg_options=few)
        predictions[deploy] = mmengine.load(out)
        right = [int(p["pred_label"]) == int(p["gt_label"]) for p in predictions[deploy]]
        assert metrics["accuracy/top1"] == pytest.approx(100 * sum(right) / 90)
    for training, deployed in zip(predictions[False], predictions[True], strict=True):
        assert training["img_path"] == deployed["img_path"]
        torch.testing.assert_close(training["pred_score"], deployed["pred_score"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_keeps_the_accuracy(learned, config, tmp_path):
    few = {"test_dataloader.dataset.indices": list(range(0, 360, 3))}
    settings = dict(work_dir=str(tmp_path), deploy=True, cfg_options=few)
    outs = {dtype: str(tmp_path / f"{dtype}.pkl") for dtype in ("float32", "bfloat16")}
    metrics = [evaluate(config, learned.checkpoint, out=out, dtype=dtype, **settings) for dtype, out in outs.items()]
    assert metrics[1]["accuracy/top1"] == pytest.approx(metrics[0]["accuracy/top1"], abs=1)
    pairs = zip(*map(mmengine.load, outs.values()))
    gaps = torch.stack([(a["pred_score"] - b["pred_score"]).abs().max() for a, b in pairs])
    assert 1e-5 < gaps.mean() < 0.02  # as far as a plain cast of the weights is off


@pytest.mark.slow
def test_segmentors_and_detectors_run_in_bfloat16_and_are_drawn_by_their_hook(short_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = short_run.config, short_run.checkpoint, "run"
    expected, actual = evaluate(*run, show_dir="shown"), evaluate(*run, dtype="bfloat16")
    assert actual == pytest.approx(expected, abs=1 if short_run.task == "seg" else 0.02, nan_ok=True)
    folder = {"seg": "shown/vis_data/vis_image", "det": "shown"}[short_run.task]
    pictures = [path for path in (tmp_path / folder).iterdir() if path.suffix in (".png", ".jpg")]
    assert len(pictures) == 6  # of each image of the test set


@needs_export
@pytest.mark.slow
def test_a_deployed_folder_is_evaluated_in_place_of_a_checkpoint(trained, config, tmp_path):
    folder, few = tmp_path / "network", {"test_dataloader.dataset.indices": 20}
    deploy_checkpoint(config, trained.checkpoint, folder, runtime="onnxruntime", dynamic=(), cfg_options=few)
    options = dict(work_dir=str(tmp_path), cfg_options=few)
    expected = evaluate(config, trained.checkpoint, out=str(tmp_path / "before.pkl"), **options)
    options["show_dir"] = tmp_path / "shown"
    assert evaluate(config, folder, out=str(tmp_path / "after.pkl"), **options) == expected
    for before, after in zip(*(mmengine.load(tmp_path / f"{name}.pkl") for name in ("before", "after")), strict=True):
        torch.testing.assert_close(after["pred_score"], before["pred_score"], rtol=0, atol=1e-5)
    assert len(list((tmp_path / "shown").glob("*.png"))) == 20
    with pytest.raises(ValueError, match="network is a deployed folder: deploy, tta"):
        evaluate(config, folder, str(tmp_path), tta=True)


@pytest.mark.slow
def test_classes_are_drawn_as_often_as_is_asked(trained, config, tmp_path):
    few = {"test_dataloader.dataset.indices": 4}
    evaluate(config, trained.checkpoint, str(tmp_path), show_dir=tmp_path / "all", cfg_options=few)
    few["default_hooks.visualization.interval"] = 2
    evaluate(config, trained.checkpoint, str(tmp_path), show_dir=tmp_path / "some", cfg_options=few)
    assert [len(list((tmp_path / name).glob("*.png"))) for name in ("all", "some")] == [4, 2]


def test_what_cannot_run_is_said_before_the_evaluation(config, tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="empty"):
        evaluate(config, tmp_path / "empty.pth", str(tmp_path))
    with pytest.raises(ValueError, match="No checkpoint is given, and .* has none in load_from"):
        evaluate(config, work_dir=str(tmp_path))
    with pytest.raises(ValueError, match="out='a.json': expected a pickle file"):
        evaluate(config, work_dir=str(tmp_path), out="a.json")
    for hooks in ({"default_hooks.visualization": None}, {"visualizer": None}, {"default_scope": "mmpose"}):
        with pytest.raises(MMRepMLPError, match="--show-dir: the config, of .*Set them, e.g. default_hooks"):
            evaluate(config, work_dir=str(tmp_path), show_dir=tmp_path, cfg_options=hooks)
    with pytest.raises(ValueError, match="dtype='float16': expected one of float32, bfloat16"):
        evaluate(config, work_dir=str(tmp_path), dtype="float16")
    with pytest.raises(ValueError, match="The config sets no test_evaluator: nothing to run"):
        evaluate(config, work_dir=str(tmp_path), cfg_options={"test_evaluator": None})
