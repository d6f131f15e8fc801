# SPDX-License-Identifier: Apache-2.0
"""Commands are timed as a whole, or until their output has a text."""

import sys

import pytest

from dev import startup
from dev.startup import Start, measure_starts, starts
from mmrepmlp.errors import MMRepMLPError


def python(code: str, until: str = "") -> Start:
    return Start([sys.executable, "-c", code], until)


def test_a_command_is_timed_until_its_text():
    slow = "import time; print('Epoch(train)', flush=True); time.sleep(60)"
    assert python("pass").run() < python(slow, "(train)").run() + 30 < 60


@pytest.mark.parametrize(
    ("command", "code"),
    [(python("print('broken'); exit(3)"), 3), (python("print('broken')", "(train)"), 0)],
)
def test_a_command_that_fails_shows_its_output(command, code):
    with pytest.raises(MMRepMLPError, match=f"exit code {code}:\nbroken"):
        command.run()


def test_the_first_run_does_not_count(monkeypatch, tmp_path):
    counted = python(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')")
    monkeypatch.setattr(startup, "starts", lambda frameworks: {("mmrepmlp", "import"): counted})
    report = measure_starts(repeats=2)
    assert (tmp_path / "runs").read_text() == "xxx" and report.environment["repeats"] == 2
    assert [row["task"] for row in report.rows] == ["import"] and report.rows[0]["milliseconds"] > 0


def test_both_sides_train_the_same_config():
    commands = starts(["mmpretrain"])
    theirs, ours = (commands[model, "train, mmpretrain"].arguments for model in ("frameworks", "mmrepmlp"))
    assert theirs[2:] == ours[4:] and ours[1:4] == ["-m", "mmrepmlp", "train"]
