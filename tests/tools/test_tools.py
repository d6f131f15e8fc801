# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"
TRAIN = ("--work-dir", "--resume", "--amp", "--auto-scale-lr", "--cfg-options", "--launcher")
TEST = ("--work-dir", "--out", "--deploy", "--cfg-options", "--launcher")
CONVERTER = ("checkpoint", "out", "--ema", "--allow-unsafe", "--overwrite")
EXPORT = (
    *("config", "checkpoint", "out", "--size", "--batch", "--dynamic", "--opset", "--backbone-only", "--no-deploy"),
    *("--ema", "--tolerance", "--overwrite"),
)
REPARAMETERIZE = (
    *("config", "checkpoint", "out", "--overwrite", "--check", "--verify-on", "--tolerance", "--ema", "--dtype"),
    *("--keep-training-state", "--allow-unsafe"),
)
BENCHMARK = ("--arch", "--img-size", "--threads", "--dtype", "--repeats", "--json", "--plot")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "TORCH")}
    env = {**inherited, "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool, options",
    [
        ("train.py", TRAIN),
        ("test.py", TEST),
        ("reparameterize.py", REPARAMETERIZE),
        ("model_converters/official_to_mmrepmlp.py", CONVERTER),
        ("model_converters/mmrepmlp_to_official.py", CONVERTER),
        ("deployment/export_onnx.py", EXPORT),
        ("deployment/quantize.py", ("config", "checkpoint", "out", "--images", "--keep-float", "--cfg-options")),
        ("deployment/test_onnx.py", ("config", "onnx_file", "--work-dir", "--cfg-options")),
        ("model_converters/publish_model.py", ("config", "checkpoint", "out", "--report", "--ema", "--overwrite")),
        ("dataset_converters/digits.py", ("--task", "--out", "--overwrite")),
        ("analysis_tools/benchmark.py compare", (*BENCHMARK, "--batches", "--training-step", "--runtimes")),
        ("analysis_tools/benchmark.py sizes", (*BENCHMARK, "--sizes")),
        ("analysis_tools/benchmark.py breakdown", (*BENCHMARK, "--sizes", "--batches")),
        ("analysis_tools/visualize_fc3.py", ("config", "checkpoint", "out", "--channel-set", "--pixel")),
        ("analysis_tools/draw_predictions.py", ("config", "checkpoint", "out", "--images", "--score")),
        ("analysis_tools/compare_forms.py", ("--configs", "--checkpoints", "--predictions")),
    ],
)
def test_help_names_the_options(tool, options):
    done = run(sys.executable, *f"tools/{tool}".split(), "--help")
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in options)


@pytest.mark.slow
def test_a_mistake_ends_in_one_sentence(tmp_path):
    (tmp_path / "empty.pth").touch()
    out = tmp_path / "deploy.pth"
    done = run(sys.executable, "tools/reparameterize.py", CONFIG, str(tmp_path / "empty.pth"), str(out))
    assert done.returncode == 1 and not out.exists()
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    done = run(sys.executable, "tools/model_converters/mmrepmlp_to_official.py", str(tmp_path / "empty.pth"), str(out))
    assert done.returncode == 1 and done.stderr == f"error: {tmp_path}/empty.pth is empty. Copy or download it again.\n"
    done = run(sys.executable, "tools/dataset_converters/digits.py", "--out", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path} already exists")


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
