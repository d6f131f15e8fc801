# SPDX-License-Identifier: Apache-2.0
import mmengine
import pytest
import torch

from mmrepmlp.apis import evaluate, train
from mmrepmlp.apis.config import load_config
from mmrepmlp.checkpoint import CheckpointError, load_from_local, save_checkpoint
from tests.apis.conftest import CONFIG

pytestmark = pytest.mark.slow


def test_training_writes_checkpoints_that_hold_more_than_tensors_and_load(trained):
    checkpoint = load_from_local(trained.checkpoint)
    assert checkpoint["meta"]["epoch"] == 2
    assert len(checkpoint["message_hub"]["log_scalars"]["train/loss"]._log_history) == 2 * 23
    assert {"state_dict", "optimizer", "param_schedulers"} <= checkpoint.keys()


def test_resuming_goes_on_where_training_stopped(trained, tmp_path):
    work_dir = tmp_path / "resumed"
    options = {**trained.options, "train_cfg.max_epochs": 3}
    runner = train(CONFIG, work_dir=str(work_dir), resume=str(trained.checkpoint), cfg_options=options)
    assert runner.epoch == 3 and runner.iter == 3 * 23
    assert {path.name for path in work_dir.glob("epoch_*.pth")} == {"epoch_3.pth"}
    again = train(CONFIG, work_dir=str(work_dir), resume="auto", cfg_options={**options, "train_cfg.max_epochs": 4})
    assert again.epoch == 4 and {path.name for path in work_dir.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth"}


def test_weights_alone_cannot_be_resumed_from(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_checkpoint({"state_dict": load_from_local(trained.checkpoint)["state_dict"]}, path)
    with pytest.raises(ValueError, match="weights.safetensors holds weights and no optimizer.*load_from"):
        train(CONFIG, str(tmp_path), resume=str(path), cfg_options=trained.options)
    metrics = [evaluate(CONFIG, c, str(tmp_path), cfg_options=trained.options) for c in (path, trained.checkpoint)]
    assert metrics[0] == metrics[1]


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


def test_learning_rate_scales_with_the_batch(tmp_path, options):
    short = {**options, "train_cfg.max_epochs": 1, "train_dataloader.batch_size": 32}
    runner = train(CONFIG, str(tmp_path), auto_scale_lr=True, cfg_options=short)
    assert runner.optim_wrapper.optimizer.defaults["lr"] == 2e-3  # the config's, for 64 images
    assert runner.optim_wrapper.param_groups[0]["initial_lr"] == pytest.approx(1e-3)


def test_what_cannot_run_is_said_before_training(tmp_path, options):
    unscaled = tmp_path / "unscaled.py"
    unscaled.write_text(f"_base_ = [{CONFIG!r}]\nauto_scale_lr = dict(_delete_=True)\n")
    with pytest.raises(ValueError, match="no auto_scale_lr.base_batch_size"):
        train(unscaled, str(tmp_path), auto_scale_lr=True, cfg_options=options)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="--amp .*GPU"):
            train(CONFIG, str(tmp_path), amp=True, cfg_options=options)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="empty"):
        evaluate(CONFIG, tmp_path / "empty.pth", str(tmp_path), cfg_options=options)


def test_work_dir_is_named_after_the_config_unless_one_is_given():
    assert load_config(CONFIG).work_dir == "work_dirs/repmlpnet-mini_1xb64_digits-64px"
    assert load_config(CONFIG, {"work_dir": "here"}).work_dir == "here"
    assert load_config(CONFIG, {"work_dir": "here"}, work_dir="there").work_dir == "there"


def test_a_model_moved_to_another_tile_size_keeps_most_of_its_accuracy(options, tmp_path):
    whole = {**options, "train_cfg.max_epochs": 14, "train_cfg.val_interval": 14}
    train(CONFIG, str(tmp_path / "run"), cfg_options=whole)
    accuracy = {}
    for side in (64, 96, 48):
        sizes = {"model.backbone.img_size": side, "test_dataloader.dataset.pipeline.1.scale": side}
        metrics = evaluate(CONFIG, tmp_path / "run/epoch_14.pth", str(tmp_path), cfg_options={**options, **sizes})
        accuracy[side] = metrics["accuracy/top1"]
    assert accuracy[64] > 95 and min(accuracy.values()) > 0.5 * accuracy[64]  # chance is a tenth
