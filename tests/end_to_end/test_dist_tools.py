# SPDX-License-Identifier: Apache-2.0
"""Several processes on the digits: they compute what one does, and end when one of them dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import evaluate
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.datasets import write_segmentation_scenes
from tests.end_to_end.processes import serving
from tests.fixtures import CONFIG, DENSE_CONFIGS, ROOT, dump_config

SMALL_LOADER = dict(batch_size=2, num_workers=0, persistent_workers=False)
THREE_MAPS = dict(in_channels=[24, 48, 96], in_index=[0, 1, 2], channels=8)
SHORT = {"train_dataloader.dataset.indices": 256, "train_cfg.val_interval": 1}


class Job:
    """A command and all processes that it starts, however they are detached."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
        env = {**inherited, "PYTHON": sys.executable, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
        env = {**env, "OMP_NUM_THREADS": "1", "PORT": str(free_port()), **environment, "JOB_MARK": self.mark}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        tool, *arguments = command
        # MMEngine leaves a folder where it runs.
        self.process = subprocess.Popen([ROOT / tool, *arguments], cwd=tempfile.gettempdir(), env=env, **pipes)

    def finish(self, timeout: float = 120) -> str:
        return self.process.communicate(timeout=timeout)[0]

    def members(self, wanted: str = "") -> list[int]:
        """Ids of the processes that are alive and have a certain variable."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                if f"JOB_MARK={self.mark}" in environment and (not wanted or wanted in environment):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def started(*command: object, **environment: str) -> Iterator[Job]:
    job = Job([str(part) for part in command], **environment)
    try:
        yield job
    finally:
        for pid in job.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.process.wait(10)


def succeed(*command: object, **environment: str) -> str:
    with started(*command, **environment) as job:
        output = job.finish()
        assert job.process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def short(options) -> dict:
    return {**options, **SHORT}


def as_arguments(options: dict) -> list[str]:
    return ["--cfg-options", *(f"{name}={value}" for name, value in options.items())]


def write_config(path: Path, options: dict, **changes) -> Path:
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({**options, **changes})
    # What the validation predicts is kept beside what it measures.
    cfg.val_evaluator = [cfg.val_evaluator, dict(type="DumpResults", out_file_path=str(path.with_suffix(".pkl")))]
    # Nothing random but the order of the images, which depends on the epoch: a resumed run is the uninterrupted one.
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.dump(path)
    return path


def assert_same(actual: Path, expected: Path, images: int, tolerance: float = 1e-6) -> None:
    actual, expected = mmengine.load(actual), mmengine.load(expected)
    assert len(actual) == len(expected) == images
    for a, b in zip(actual, expected):
        assert a["img_path"] == b["img_path"]
        torch.testing.assert_close(a["pred_score"], b["pred_score"], rtol=0, atol=tolerance)


def last_metrics(work_dir: Path) -> dict:
    lines = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1].read_text().splitlines()
    return [json.loads(line) for line in lines if "accuracy/top1" in line][-1]


@pytest.fixture(scope="module")
def at_once(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Variables for scripts that start at once; a signal does not reach them, it ends only what waits for them."""
    with serving(tmp_path_factory.mktemp("serving")) as python:
        yield dict(PYTHON=str(python), PYTHON_EXEC=str(python))


@pytest.fixture(scope="module")
def trained_by_two(build_once, short, at_once) -> Path:
    """Two epochs in two processes, on a model that would have SyncBN where that works."""

    def write(folder: Path) -> None:
        folder.mkdir()
        config = write_config(folder / "config.py", short, **{"model.backbone.norm_cfg": dict(type="SyncBN")})
        output = succeed("tools/dist_train.sh", config, 2, "--work-dir", folder / "run", **at_once)
        assert output.count("SyncBN needs a GPU and none is available: 40 SyncBN layers are replaced by BN.") == 1

    return build_once("two", write) / "run"


@pytest.fixture(scope="module")
def predicted_by_one(trained_by_two, short, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "one.pkl"
    metrics = evaluate(CONFIG, trained_by_two / "epoch_2.pth", str(out.parent), out=str(out), cfg_options=short)
    assert last_metrics(trained_by_two)["accuracy/top1"] == metrics["accuracy/top1"]
    return out


@pytest.mark.slow
def test_two_processes_validate_the_checkpoint_that_they_save(trained_by_two, predicted_by_one):
    assert_same(trained_by_two.parent / "config.pkl", predicted_by_one, 360)


@pytest.mark.slow
def test_two_processes_predict_what_one_does(trained_by_two, short, at_once, tmp_path):
    # An odd number of images: the sampler gives the second process one that the first has had.
    odd = {**short, "test_dataloader.dataset.indices": 359}
    checkpoint, one, two = trained_by_two / "epoch_2.pth", tmp_path / "one.pkl", tmp_path / "two.pkl"
    metrics = evaluate(CONFIG, checkpoint, str(tmp_path / "1"), out=str(one), deploy=True, cfg_options=odd)
    options = ["--deploy", "--work-dir", tmp_path / "2", "--out", two, *as_arguments(odd)]
    succeed("tools/dist_test.sh", CONFIG, checkpoint, 2, *options, **at_once)
    assert_same(two, one, 359)
    [log] = (tmp_path / "2").glob("*/*.json")
    assert json.loads(log.read_text())["accuracy/top1"] == metrics["accuracy/top1"]


@pytest.mark.slow
def test_two_processes_train_without_the_stages_that_no_head_reads(at_once, tmp_path):
    write_segmentation_scenes(tmp_path / "scenes", counts=dict(train=4, val=2))
    loaders = [f"{split}_dataloader" for split in ("train", "val", "test")]
    settings = {f"{name}.dataset.data_root": str(tmp_path / "scenes") for name in loaders}
    settings |= {f"{name}.{key}": value for name in loaders for key, value in SMALL_LOADER.items()}
    settings |= {"model.backbone.out_indices": (0, 1, 2), "model.backbone.init_cfg": None, "model.auxiliary_head": None}
    settings["model.backbone.arch.depths"] = [1, 1, 1, 1]
    settings |= {f"model.decode_head.{key}": value for key, value in THREE_MAPS.items()}
    # DDP misses gradients of the first iteration in the second.
    settings |= {"train_cfg.max_iters": 3, "train_cfg.val_interval": 3, "default_hooks.checkpoint.interval": 3}
    config = dump_config(ROOT / "configs" / DENSE_CONFIGS["seg"], settings, tmp_path / "config.py")
    output = succeed("tools/dist_train.sh", config, 2, "--work-dir", tmp_path / "run", **at_once)
    assert "find_unused_parameters" not in config.read_text() and "mIoU: " in output
    state = load_from_local(tmp_path / "run/iter_3.pth")["state_dict"]
    assert {name.split(".")[2] for name in state if name.startswith("backbone.stages.")} == {"0", "1", "2"}


FAKE_SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys
start = sys.argv.index("-u") - 1
options, command = sys.argv[1:start], sys.argv[start:]
json.dump(options, open(os.environ["SRUN_RECORD"], "w"))
[tasks] = [option.split("=")[1] for option in options if option.startswith("--ntasks=")]
job = dict(os.environ, SLURM_NTASKS=tasks, SLURM_NODELIST="node[1-2]")
ranks = [dict(job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(int(tasks))]
sys.exit(max([p.wait() for p in [subprocess.Popen(command, env=rank) for rank in ranks]]))
"""


def install(folder: Path, **scripts: str) -> str:
    """A PATH with scripts of our own in front."""
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
def test_slurm_starts_the_same(trained_by_two, predicted_by_one, short, at_once, tmp_path):
    path = install(tmp_path, srun=FAKE_SRUN, scontrol="#!/bin/sh\necho 127.0.0.1\necho unreachable\n")
    record, two, checkpoint = tmp_path / "options.json", tmp_path / "two.pkl", trained_by_two / "epoch_2.pth"
    command = ["tools/slurm_test.sh", "cpus", "digits", CONFIG, checkpoint, "--work-dir", tmp_path, "--out", two]
    slurm = dict(**at_once, GPUS="2", CPUS_PER_TASK="1", SRUN_ARGS="--gres=none --exclusive", SRUN_RECORD=str(record))
    succeed(*command, *as_arguments(short), PATH=path, **slurm)
    assert json.loads(record.read_text()) == [
        *("--partition=cpus", "--job-name=digits", "--gres=gpu:2", "--ntasks=2", "--ntasks-per-node=2"),
        *("--cpus-per-task=1", "--kill-on-bad-exit=1", "--gres=none", "--exclusive"),
    ]
    assert_same(two, predicted_by_one, 360)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_training_resumes(short, at_once, tmp_path):
    config = write_config(tmp_path / "config.py", short, **{"train_cfg.max_epochs": 500, "train_cfg.val_interval": 500})
    work_dir = tmp_path / "run"
    with started("tools/dist_train.sh", config, 2, "--work-dir", work_dir) as job:
        deadline = time.monotonic() + 90
        while not (work_dir / "last_checkpoint").exists() and time.monotonic() < deadline:
            assert job.process.poll() is None, job.finish()
            time.sleep(0.1)
        [victim] = job.members("RANK=1")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        output = job.finish(60)
        assert time.monotonic() - killed < 30
        assert job.process.returncode == 1 and "Signal 9 (SIGKILL)" in output and str(victim) in output
        assert not job.members()
    reached = int(Path((work_dir / "last_checkpoint").read_text()).stem.split("_")[1])
    # As two machines, for what it matters to a checkpoint.
    command = ["tools/dist_train.sh", config, 1, "--work-dir", work_dir, "--resume", "auto"]
    command += as_arguments({"train_cfg.max_epochs": reached + 1})
    machines = dict(NNODES="2", PORT=str(free_port()), **at_once)
    with started(*command, **machines, NODE_RANK="1") as second:
        output = succeed(*command, **machines, NODE_RANK="0")
        second.finish()
        assert second.process.returncode == 0
    assert f"resumed epoch: {reached}, iter: {reached * 2}" in output
    checkpoint = load_from_local(work_dir / f"epoch_{reached + 1}.pth")
    assert checkpoint["meta"]["epoch"] == reached + 1 and checkpoint["meta"]["iter"] == (reached + 1) * 2


def refuse(*command: str, **environment: str) -> str:
    with started(*command, **environment) as job:
        output = job.finish(60)
        assert job.process.returncode == 1
        return output


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        ("dist_train.sh config.py 0", {}, "error: GPUS is 0: expected a number >= 1.\n"),
        (
            "dist_train.sh config.py two",
            {},
            "error: GPUS is 'two': expected a number >= 1, as digits.\n",
        ),
        ("dist_test.sh config.py a.pth -1", {}, "error: GPUS is '-1': expected a number >= 1, as"),
        (
            "dist_train.sh config.py 1",
            dict(NNODES="2", NODE_RANK="2"),
            "error: NODE_RANK is 2; with NNODES=2 it ranges",
        ),
        ("dist_train.sh config.py 1", dict(PORT="x"), "error: PORT is 'x': expected a number >= 1, as digits"),
        ("slurm_train.sh part job config.py dir", dict(GPUS="0"), "error: GPUS is 0: expected a number >= 1."),
        (
            "slurm_test.sh part job config.py a.pth",
            dict(GPUS_PER_NODE="all"),
            "error: GPUS_PER_NODE is 'all': expected a number",
        ),
    ],
)
def test_wrong_numbers_are_refused_before_anything_starts(arguments, environment, message):
    script, *rest = arguments.split()
    assert refuse(f"tools/{script}", *rest, **environment).startswith(message)


def test_a_machine_without_slurm_is_pointed_to_the_other_scripts(tmp_path):
    for name in ("bash", "dirname", "basename", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name))
    output = refuse("tools/slurm_test.sh", "part", "job", "config.py", "a.pth", PATH=str(tmp_path))
    assert output.startswith("error: srun not found. Run this on a slurm cluster, or use dist_test.sh on this machine.")


def test_more_processes_than_gpus_are_refused(tmp_path):
    python = install(tmp_path, python="#!/bin/sh\necho 2\n").split(":")[0] + "/python"
    output = refuse("tools/dist_test.sh", "config.py", "a.pth", "3", PYTHON=python)
    assert output.startswith("error: GPUS is 3 and this machine has 2: expected 1 to 2. Lower it, or run on CPUs")


@pytest.mark.parametrize("script, count", [("dist_train", 2), ("dist_test", 3), ("slurm_train", 4), ("slurm_test", 4)])
def test_usage(script, count):
    usage = succeed(f"tools/{script}.sh", "--help")
    assert usage.startswith(f"Usage: tools/{script}.sh ") and "PORT (29500)" in usage
    missing = refuse(f"tools/{script}.sh", "config.py")
    assert missing.startswith(usage) and missing.splitlines()[-1].startswith(
        f"error: {script}.sh takes {count} arguments before its options; 1 given."
    )
