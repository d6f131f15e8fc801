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


def test_an_unknown_stack_is_refused(tmp_path):
    done = run("tools/setup_env.sh", STACK="openmm", VENV=str(tmp_path / "venv"), PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "setup: STACK is 'openmm'; expected openmmlab or onedl\n"


@pytest.mark.parametrize(
    "stack, installed, named",
    [
        ("openmmlab", ["onedl-mmcv==2.3.6", "numpy==2.0"], "onedl-mmcv==2.3.6"),
        ("openmmlab", ["mmcv-lite==2.2.0", "mmengine==0.10.7"], "mmcv-lite==2.2.0"),
        ("onedl", ["mmcv==2.1.0", "mmdet==3.3.0", "onedl-mmengine==0.10.12"], "mmcv==2.1.0 mmdet==3.3.0"),
    ],
)
def test_one_stack_is_not_installed_over_the_other(tmp_path, stack, installed, named):
    packages = " ".join(installed)
    python = fake_python(tmp_path, f'case "$*" in *"pip list"*) printf "%s\\n" {packages}; exit;; esac')
    done = run("tools/setup_env.sh", STACK=stack, VENV="", PYTHON=python, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"setup: the environment has {named}, and STACK is {stack}. Set STACK")


@pytest.mark.parametrize("stack, venv", [("openmmlab", ".venv"), ("onedl", ".venv-onedl")])
def test_each_stack_has_an_environment_of_its_own(stack, venv):
    commands = run("make", "-n", "--always-make", "test-fast", f"STACK={stack}").stdout
    assert (
        f"VENV='{venv}'" in commands and f"STACK='{stack}'" in commands and f"{venv}/bin/python -m pytest" in commands
    )


def test_make_does_nothing_when_nothing_changed(tmp_path):
    stamp = tmp_path / "venv/.installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "Nothing to be done" in run("make", "env", f"VENV={tmp_path}/venv").stdout
    assert "setup_env.sh" in run("make", "-n", "env", f"VENV={tmp_path}/venv", "TORCH=2.9.1").stdout
    os.utime(stamp, (0, 0))
    assert "setup_env.sh" in run("make", "-n", "env", f"VENV={tmp_path}/venv").stdout
