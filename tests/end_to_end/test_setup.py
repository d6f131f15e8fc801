# SPDX-License-Identifier: Apache-2.0
"""What ``make`` and the set-up say before they install anything."""

import os
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import run


def fake_python(folder: Path, answers: str) -> str:
    """A Python that answers the set-up's questions in its own way and is the real one otherwise."""
    script = folder / "python"
    script.write_text(f'#!/bin/bash\n{answers}\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    "answers, compiler, message",
    [
        (None, "g++", "not found. Install Python 3.10 or newer, or"),
        ('case "$2" in *version_info*) exit 1;; esac', "g++", "Python 3.10 or newer is needed"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "g++", "apt install python3-venv"),
        ('case "$2" in *sysconfig*) echo /nowhere; exit;; esac', "g++", "apt install python3-dev"),
        ("", "no-such-compiler", "the C++ compiler 'no-such-compiler' is missing"),
    ],
)
def test_set_up_stops_early_and_says_what_to_install(tmp_path, answers, compiler, message):
    python = "no-such-python" if answers is None else fake_python(tmp_path, answers)
    venv = tmp_path / "venv"
    done = run("tools/setup_env.sh", PYTHON=python, CXX=compiler, VENV=str(venv), HOME=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("setup: ") and message in done.stderr
    assert not done.stdout and not venv.exists()


def test_make_does_nothing_when_nothing_changed(tmp_path):
    stamp = tmp_path / "venv/.installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "Nothing to be done" in run("make", "env", f"VENV={tmp_path}/venv").stdout
    assert "setup_env.sh" in run("make", "-n", "env", f"VENV={tmp_path}/venv", "TORCH=2.9.1").stdout
    os.utime(stamp, (0, 0))
    assert "setup_env.sh" in run("make", "-n", "env", f"VENV={tmp_path}/venv").stdout
