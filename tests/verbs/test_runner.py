# SPDX-License-Identifier: Apache-2.0
"""What each run has to itself."""

import os
import time
from pathlib import Path

import pytest

from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.runner import CHECKS, build_runner, wait_for_unique_name


@pytest.mark.parametrize(
    "naming, from_file", [({}, True), ({}, False), ({"experiment_name": "mine"}, True), ({"visualizer": None}, False)]
)
def test_runs_that_begin_in_one_second_share_nothing(config, tmp_path, naming, from_file):
    cfg = load_config(config, naming, str(tmp_path))
    if not from_file:
        cfg = type(cfg)(cfg.to_dict())
    first, second = build_runner(cfg.copy()), build_runner(cfg.copy())
    assert first.log_dir != second.log_dir and first.experiment_name != second.experiment_name
    for name in ("logger", "message_hub", "visualizer"):
        assert getattr(first, name) is not getattr(second, name), name


def test_runs_of_several_processes_have_log_folders_of_their_own(config, tmp_path, monkeypatch):
    cfg = load_config(config, None, str(tmp_path))
    began = time.time()
    for start in range(2):  # as another process would have begun it in the same second, and in the next
        (tmp_path / time.strftime("%Y%m%d_%H%M%S", time.localtime(began + start))).mkdir()
    runner = build_runner(cfg)
    assert time.time() >= int(began) + 2 and os.listdir(runner.log_dir) and len(list(tmp_path.glob("2*"))) == 3
    monkeypatch.setenv("RANK", "1")  # of the same run
    monkeypatch.setattr(time, "strftime", lambda _: runner.timestamp)
    assert wait_for_unique_name(load_config(config, {"experiment_name": "other"}, str(tmp_path))) == Path(
        runner.log_dir
    )


def test_the_log_takes_every_path(config, tmp_path):
    runner = build_runner(load_config(config, None, str(tmp_path)))
    runner.logger.info("\u6570\u5b57")
    (log,) = Path(runner.log_dir).glob("*.log")
    assert "\u6570\u5b57" in log.read_text(encoding="utf-8")


def test_a_work_dir_that_is_a_file_is_named(config, tmp_path):
    (tmp_path / "a").touch()
    for work_dir, message in (
        ("a", "a cannot be written: It is a file"),
        ("a/b", "a/b cannot be written: .*a is a file"),
    ):
        with pytest.raises(OSError, match=message):
            build_runner(load_config(config, None, str(tmp_path / work_dir)))


@pytest.mark.parametrize(
    "switch, other", [("check_weights", "check_annotations"), ("check_annotations", "check_weights")]
)
def test_every_run_is_checked_unless_its_config_says_otherwise(config, tmp_path, switch, other):
    """Training and test alike."""
    present = {type(hook).__name__ for hook in build_runner(load_config(config, {switch: False}, str(tmp_path))).hooks}
    assert present.isdisjoint(CHECKS[switch]) and present.issuperset(CHECKS[other])
