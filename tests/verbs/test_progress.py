# SPDX-License-Identifier: Apache-2.0
"""What a run with ``--progress`` leaves on the terminal and in its log file."""

import io
import logging
import re
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmrepmlp.apis import evaluate, train
from mmrepmlp.verbs.progress import ProgressHook, concerns_user

pytestmark = pytest.mark.slow
SHOW_CURSOR = "\x1b[?25h"


@HOOKS.register_module(force=True)
class WarningHook(Hook):
    """Warns in each epoch, and fails in the one that is given."""

    def __init__(self, failing: int | None = None) -> None:
        self.failing = failing

    def after_train_epoch(self, runner) -> None:
        runner.logger.info("an information")
        print("something printed")
        runner.logger.warning(f"a warning in epoch {runner.epoch}")
        runner.logger.error(f"an error in epoch {runner.epoch}")
        if self.failing == runner.epoch:
            raise RuntimeError("a failure")


@pytest.fixture
def short() -> dict:
    """Two epochs of two iterations, each validated on one batch."""
    indices = {f"{split}_dataloader.dataset.indices": count for split, count in {"train": 100, "val": 20}.items()}
    return {**indices, "train_cfg.val_interval": 1, "custom_hooks": [dict(type="mmengine.WarningHook")]}


def log_of(work_dir: Path) -> str:
    """The only log file of a run."""
    (path,) = work_dir.rglob("*.log")
    return path.read_text()


def test_where_there_is_no_terminal_each_validation_is_a_line(config, short, tmp_path, capfd):
    runner = train(config, str(tmp_path), cfg_options=short, progress=True)
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    lines = capfd.readouterr().out.splitlines()
    printed = [line for line in lines if "mmengine" not in line]
    assert re.fullmatch(r"log: \S+\.log", printed[0]) and Path(printed[0][5:]).samefile(next(tmp_path.rglob("*.log")))
    for epoch, line in enumerate(printed[1:3], 1):
        loss = f"{losses[2 * epoch - 2 : 2 * epoch].mean():.4f}"  # of the iterations since the last line
        assert re.fullmatch(rf"epoch {epoch}/2  loss {loss}  accuracy/top1 \d+", line), line
    assert re.fullmatch(r"checkpoint: \S+epoch_2\.pth", printed[3]) and len(printed) == 4
    assert Path(printed[3][12:]).samefile(tmp_path / "epoch_2.pth")
    logged = [re.sub(r"\x1b\[\S+?m", "", line).split(" - ") for line in lines if "mmengine" in line]
    assert [(line[2], line[-1]) for line in logged] == [
        (level, f"{word} in epoch {epoch}")
        for epoch in range(2)
        for level, word in (("WARNING", "a warning"), ("ERROR", "an error"))
    ]
    log = log_of(tmp_path)
    for part in (
        "Config:",
        "Hooks will be executed",
        "Epoch(train)",
        "Epoch(val)",
        "an information",
        "something printed",
    ):
        assert part in log, part


def test_a_terminal_gets_a_bar_and_is_released(config, short, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    short["custom_hooks"] = [dict(type="mmengine.WarningHook", failing=1)]
    with pytest.raises(RuntimeError, match="a failure"):
        train(config, str(tmp_path), cfg_options=short, progress=True)
    out = capfd.readouterr().out
    assert "━" in out and "/4" in out and "a warning in epoch 1" in out and "printed" not in out and "INFO" not in out
    assert out.rindex(SHOW_CURSOR) > out.rindex("\x1b[?25l")


def test_a_test_prints_its_metrics(trained, config, tmp_path, capfd):
    few = {"test_dataloader.dataset.indices": 20}
    metrics = evaluate(config, trained.checkpoint, str(tmp_path), cfg_options=few, progress=True)
    log, result = (line for line in capfd.readouterr().out.splitlines() if not line.startswith("Loads checkpoint"))
    assert log.startswith("log: ") and result == f"test  accuracy/top1 {metrics['accuracy/top1']:.4g}"
    assert "Epoch(test)" in log_of(tmp_path)


def test_iterations_are_counted_where_the_config_counts_them(short_run, tmp_path, capfd):
    few = {"train_dataloader.batch_size": 2, "val_dataloader.dataset.indices": 2}
    few |= {"train_dataloader.dataset.indices": 4} if short_run.task == "det" else {}
    train(short_run.config, str(tmp_path), cfg_options=few, progress=True)
    out = capfd.readouterr().out
    by_task = dict(seg=r"iteration 3/3  loss \S+  aAcc \S+  mIoU \S+  mAcc \S+", det=r"epoch 1/1  loss \S+  coco/bbox_")
    assert re.search(by_task[short_run.task], out) and len(out.splitlines()) == 3


def test_long_silence_is_broken(config, short, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("mmrepmlp.verbs.progress.SILENCE", 0)
    train(config, str(tmp_path), cfg_options={**short, "train_cfg.val_interval": 9}, progress=True)
    assert re.findall(r"^iteration (\d/\d)  loss \d", capfd.readouterr().out, re.M) == ["1/4", "2/4", "3/4", "4/4"]


def test_an_unknown_runner_is_named(config, short, tmp_path):
    with pytest.raises(ValueError, match="runner_type='Walker' is unknown"):
        train(config, str(tmp_path), cfg_options={**short, "runner_type": "Walker"}, progress=True)


def test_a_model_without_a_loss_and_metrics_that_are_no_numbers(monkeypatch):
    hook = ProgressHook()
    hook.console.file = io.StringIO()
    hook.after_test_epoch(None, {"a": 1.23456, "table": "text", "list": [1, 2]})
    assert hook.console.file.getvalue() == "test  a 1.235\n"


def test_warnings_of_the_framework_to_itself_are_left_out():
    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("mmengine", logging.WARNING, "", 0, text, (), None)

    assert not concerns_user(record('"FileClient" will be deprecated in future.'))
    assert concerns_user(record("The model and loaded state dict do not match exactly"))
