# SPDX-License-Identifier: Apache-2.0
"""Conversions and trainings that are killed at random moments, and disks that are full."""

import random
import re
import time
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import evaluate, reparameterize_checkpoint
from mmrepmlp.checkpoint import file_hash, load_from_local, save_checkpoint, unwrap
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model, build_untrained
from tests.conftest import TINY
from tests.end_to_end import kill_targets
from tests.end_to_end.processes import start
from tests.fixtures import CONFIG, dump_config

pytestmark = pytest.mark.slow

KILLED = -9
SMALL = {"model.backbone.arch": TINY, "model.head.in_channels": 64}
CONVERSION_KILLS, TRAINING_KILLS = 8, 4


@pytest.fixture(scope="module", autouse=True)
def server():
    """The first process waits for the server, which would spoil the times."""
    assert run(time.sleep, 0) == 0


@pytest.fixture(scope="module")
def config(options, tmp_path_factory) -> Path:
    return dump_config(CONFIG, {**options, **SMALL}, tmp_path_factory.mktemp("config") / "config.py")


@pytest.fixture(scope="module")
def sources(config, tmp_path_factory) -> list[Path]:
    """Two checkpoints to convert in turn."""
    folder = tmp_path_factory.mktemp("sources")
    state = build_untrained(read_config(config)).state_dict()
    paths = [folder / "first.pth", folder / "second.pth"]
    for shift, path in enumerate(paths):
        state["head.fc.bias"] = state["head.fc.bias"] + shift
        save_checkpoint({"state_dict": dict(state)}, path)
    return paths


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "deploy.pth"


def run(target, *arguments, **options) -> int:
    process = start(target, *arguments, **options)
    process.join()
    return process.exitcode


def converted_bias(out: Path) -> torch.Tensor | None:
    """The last parameter of the model in the destination, which must be whole; None if there is none."""
    config = out.with_suffix(".py")
    if not config.exists():
        return None
    cfg = Config.fromfile(config)
    checkpoint = config.parent / cfg.load_from
    assert checkpoint.stem == f"deploy-{file_hash(checkpoint)}"
    assert mmengine.load(checkpoint.with_suffix(".json"))["checkpoint"] == str(checkpoint)
    return build_model(cfg, load_from_local(checkpoint)["state_dict"]).head.fc.bias


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.suffix == ".tmp"]


def test_a_conversion_killed_at_any_moment_leaves_the_old_files_or_new_ones(sources, config, out):
    delay = 0.05  # seconds, in which one file has its new name and the next has not
    expected = [unwrap(load_from_local(path))["head.fc.bias"] for path in sources]
    began = time.monotonic()
    assert run(kill_targets.convert, config, sources[0], out, delay=delay) == 0
    duration, generator = time.monotonic() - began, random.Random(0)
    for path in out.parent.iterdir():
        path.unlink()
    killed, seen = 0, {None}
    while killed < CONVERSION_KILLS or seen == {None}:
        share, began = generator.uniform(0.3, 1.1), time.monotonic()
        process = start(kill_targets.convert, config, sources[killed % 2], out, delay=delay)
        process.join(share * duration)
        process.kill()
        process.join()
        if process.exitcode == KILLED:
            killed += 1
            duration *= 1.2 if share > 1 else 1  # the machine has become slower
        else:
            duration = time.monotonic() - began
        bias = converted_bias(out)
        found = None if bias is None else [torch.equal(bias, other) for other in expected].index(True)
        assert found is not None or seen == {None}  # what was there is never lost
        seen.add(found)
    assert run(kill_targets.convert, config, sources[0], out) == 0
    assert torch.equal(converted_bias(out), expected[0])
    names = sorted(re.sub("[0-9a-f]{8}", "x", path.name) for path in out.parent.iterdir())
    assert names == ["deploy-x.json", "deploy-x.pth", "deploy.py"]


@pytest.mark.parametrize("commits", range(3))
def test_the_next_conversion_removes_what_one_of_other_weights_left(sources, config, out, commits):
    assert run(kill_targets.convert_and_die, commits, config, sources[1], out) == KILLED
    assert len(leftovers(out)) == 1
    assert run(kill_targets.convert, config, sources[0], out) == 0
    assert len(list(out.parent.iterdir())) == 3 and not leftovers(out)


def test_a_full_disk_leaves_what_was_there(sources, config, out, tmp_path):
    report = reparameterize_checkpoint(config, sources[0], tmp_path / "whole.pth")
    sizes = [int(share * report.checkpoint.stat().st_size) for share in (0.05, 0.5, 0.999)]
    for size in sizes:
        assert run(kill_targets.convert_on_full_disk, size, config, sources[0], out) == 3
        assert not list(out.parent.iterdir())
    assert run(kill_targets.convert, config, sources[0], out) == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    for size in sizes:
        assert run(kill_targets.convert_on_full_disk, size, config, sources[1], out) == 3
        assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


@pytest.fixture
def settings(options) -> dict:
    return {
        **options,
        "train_cfg.max_epochs": 4,
        "train_cfg.val_interval": 4,
        "train_dataloader.dataset.indices": 128,
        "train_dataloader.batch_size": 32,
        "default_hooks.checkpoint.max_keep_ckpts": 1,
        "randomness.deterministic": True,
        "model.backbone.drop_path_rate": 0.1,
        **SMALL,
    }


def test_a_killed_training_ends_where_an_undisturbed_one_does(settings, tmp_path):
    undisturbed, generator = tmp_path / "undisturbed", random.Random(0)
    began = time.monotonic()
    assert run(kill_targets.train_digits, CONFIG, str(undisturbed), settings) == 0
    duration = time.monotonic() - began
    expected = load_from_local(undisturbed / "epoch_4.pth")
    accuracy = evaluate(CONFIG, undisturbed / "epoch_4.pth", str(undisturbed), cfg_options=settings)
    killed, runs, resumed = 0, 0, 0
    while killed < TRAINING_KILLS or not resumed:
        work_dir = tmp_path / str(runs)
        goes_on = (work_dir / "last_checkpoint").exists()
        process = start(kill_targets.train_digits, CONFIG, str(work_dir), settings)
        in_time = generator.uniform(0.2, 0.9) * duration
        process.join(None if killed >= TRAINING_KILLS and goes_on else in_time)
        process.kill()
        process.join()
        if process.exitcode == KILLED:
            killed += 1
            duration *= 1 if (work_dir / "last_checkpoint").exists() else 1.2  # the machine may have become slower
            continue
        assert process.exitcode == 0
        runs, resumed = runs + 1, resumed + goes_on
        actual = load_from_local(work_dir / "epoch_4.pth")
        assert actual["meta"]["epoch"] == 4
        for name, value in expected["state_dict"].items():
            assert torch.equal(actual["state_dict"][name], value), name
        assert evaluate(CONFIG, work_dir / "epoch_4.pth", str(work_dir), cfg_options=settings) == accuracy
