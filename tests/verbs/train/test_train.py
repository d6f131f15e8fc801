# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.apis import train
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.engine import BroadcastBuffersHook, CheckAnnotationsHook
from mmrepmlp.verbs.explain import explain
from mmrepmlp.verbs.train.train import BROADCAST, WITHOUT_CONSTRUCTOR

SHORT = {"train_cfg.max_epochs": 1, "train_dataloader.dataset.indices": 64, "val_dataloader.dataset.indices": 20}


@pytest.mark.slow
def test_training_writes_checkpoints_that_hold_more_than_tensors_and_load(trained):
    checkpoint = load_from_local(trained.checkpoint)
    assert checkpoint["meta"]["epoch"] == 2
    assert len(checkpoint["message_hub"]["log_scalars"]["train/loss"]._log_history) == 2 * 23
    assert {"state_dict", "optimizer", "param_schedulers"} <= checkpoint.keys()


@pytest.mark.slow
def test_learning_rate_scales_with_the_batch(config, tmp_path):
    short = {**SHORT, "train_dataloader.batch_size": 32}
    runner = train(config, str(tmp_path), auto_scale_lr=True, cfg_options=short)
    assert runner.optim_wrapper.optimizer.defaults["lr"] == 2e-3  # the config's, for 64 images
    assert runner.optim_wrapper.param_groups[0]["initial_lr"] == pytest.approx(1e-3)


def test_what_cannot_run_is_said_before_training(config, tmp_path):
    unscaled = tmp_path / "unscaled.py"
    for setting in ("dict(_delete_=True)", "None"):
        unscaled.write_text(f"_base_ = [{str(config)!r}]\nauto_scale_lr = {setting}\n")
        with pytest.raises(ValueError, match="no auto_scale_lr.base_batch_size"):
            train(unscaled, str(tmp_path), auto_scale_lr=True)
    with pytest.raises(ValueError, match="The config sets no train_dataloader and no train_cfg: nothing to run"):
        train(config, str(tmp_path), cfg_options={"train_cfg": None, "train_dataloader": None})
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="--amp .*GPU"):
            train(config, str(tmp_path), amp=True)


@pytest.mark.parametrize("deterministic, runner_type", [(False, "Runner"), (True, "FlexibleRunner")])
def test_what_is_overridden_or_added_is_logged_in_one_line_each(config, deterministic, runner_type, tmp_path):
    settings = {**SHORT, "runner_type": runner_type}
    settings |= {"model.backbone.gradient_reparam": True, "optim_wrapper.clip_grad": None}
    if deterministic:
        settings |= {"randomness.deterministic": True, "default_hooks.checkpoint.max_keep_ckpts": 1}
        settings["custom_hooks"] = [dict(type="mmrepmlp.CheckAnnotationsHook")]  # not added again
    else:
        settings["optim_wrapper.constructor"] = "mmrepmlp.RepOptimizerConstructor"
    runner = train(config, str(tmp_path), cfg_options=settings)
    (log,) = tmp_path.glob("*/*.log")
    text = log.read_text()
    messages = [line.split(" - INFO - ")[1] for line in text.splitlines() if " - INFO - " in line]
    assert messages.count(f"BroadcastBuffersHook added: {BROADCAST}") == 1
    for kind in (BroadcastBuffersHook, CheckAnnotationsHook):
        assert sum(isinstance(hook, kind) for hook in runner.hooks) == 1
    for start in ("max_keep_ckpts is 2 instead of 1: ", "EpochSeedHook added, and persistent_workers is False, "):
        assert sum(message.startswith(start) for message in messages) == deterministic
    assert text.count(f"WARNING - {WITHOUT_CONSTRUCTOR}") == ("optim_wrapper.constructor" not in settings)


def test_what_a_training_begins_with_is_said_on_the_terminal(trained, config, tmp_path, capfd):
    (tmp_path / "epoch_9.pth").touch()
    settings = {**SHORT, "model.head.num_classes": 12, "load_from": str(trained.checkpoint)}
    train(config, str(tmp_path), cfg_options=settings, progress=True)
    out = capfd.readouterr().out
    assert "Tensors of another shape: head.fc.weight" in out and "keep their initial values" in out
    assert f"{tmp_path} already has checkpoints: epoch_9.pth. This run writes" in out


def test_a_setting_of_the_loop_that_does_not_exist_is_named(config, tmp_path):
    with pytest.raises(TypeError) as caught:
        train(config, str(tmp_path), cfg_options={"train_cfg.max_epoch": 2})
    assert "unexpected keyword argument 'max_epoch'. Correct its arguments in the config" in explain(caught.value)
