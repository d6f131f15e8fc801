# SPDX-License-Identifier: Apache-2.0
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import evaluate, train
from mmrepmlp.checkpoint import CheckpointError, load_from_local, save_checkpoint
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.explain import ExplainedError
from mmrepmlp.verbs.train.resume import latest_checkpoint, make_resumable
from tests.fixtures import CONFIG

FEW = {"train_dataloader.dataset.indices": 128, "val_dataloader.dataset.indices": 20}


@pytest.mark.slow
def test_resuming_goes_on_where_training_stopped_and_passes_over_what_is_not_whole(trained, config, tmp_path):
    settings = {**FEW, "default_hooks.checkpoint.max_keep_ckpts": 1, "randomness.deterministic": True}
    settings["model.backbone.drop_path_rate"] = 0.1
    options = {**settings, "train_cfg.max_epochs": 3}
    runner = train(config, str(tmp_path), resume=str(trained.checkpoint), cfg_options=options)
    assert runner.epoch == 3 and runner.iter == 2 * 23 + 2
    assert {path.name for path in tmp_path.glob("*.pth")} == {"epoch_3.pth"}
    whole = (tmp_path / "epoch_3.pth").read_bytes()
    (tmp_path / "epoch_4.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "last_checkpoint").write_text("")
    runner = train(config, str(tmp_path), resume="auto", cfg_options={**settings, "train_cfg.max_epochs": 4})
    assert runner.epoch == 4 and runner.iter == 2 * 23 + 4
    assert load_from_local(tmp_path / "epoch_4.pth")["meta"]["iter"] == 2 * 23 + 4
    assert {path.name for path in tmp_path.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth"}


@pytest.mark.slow
def test_weights_alone_cannot_be_resumed_from(trained, config, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_checkpoint({"state_dict": load_from_local(trained.checkpoint)["state_dict"]}, path)
    with pytest.raises(ValueError, match="weights.safetensors holds weights but no optimizer.*load_from"):
        train(config, str(tmp_path), resume=str(path))
    few = {"test_dataloader.dataset.indices": list(range(0, 360, 9))}
    metrics = [evaluate(config, c, str(tmp_path), cfg_options=few) for c in (path, trained.checkpoint)]
    assert metrics[0] == metrics[1]


def test_what_a_killed_training_needs_is_settled_and_said():
    def settle(**settings):
        cfg = Config(dict(train_dataloader=dict(persistent_workers=True), **settings))
        return cfg, make_resumable(cfg)

    plain, changes = settle(default_hooks=dict(checkpoint=dict(type="CheckpointHook", max_keep_ckpts=3)))
    assert not changes and plain.default_hooks.checkpoint.max_keep_ckpts == 3 and "custom_hooks" not in plain
    for settings in ({}, dict(default_hooks=dict(checkpoint=None)), dict(randomness=dict(seed=1))):
        assert not settle(**settings)[1]
    cfg, changes = settle(
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", max_keep_ckpts=1)),
        randomness=dict(deterministic=True),
        custom_hooks=[dict(type="EMAHook")],
    )
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 2 and not cfg.train_dataloader.persistent_workers
    assert [hook.type for hook in cfg.custom_hooks] == ["EMAHook", "mmrepmlp.EpochSeedHook"]
    assert [change.split()[0] for change in changes] == ["max_keep_ckpts", "EpochSeedHook"]


@pytest.fixture
def state():
    """What MMEngine needs to resume a training."""
    return {"meta": {"epoch": 1, "iter": 9}, "message_hub": {}, "optimizer": {}, "state_dict": {}}


def write(path: Path, content: dict, time: int) -> str:
    save_checkpoint(content, path)
    os.utime(path, (time, time))
    return str(path)


def test_the_latest_checkpoint_is_the_newest_that_is_whole(state, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    first, second, third = (write(tmp_path / f"epoch_{number}.pth", state, number) for number in (1, 2, 3))
    assert latest_checkpoint(tmp_path) == third
    (tmp_path / "last_checkpoint").write_text(first)
    assert latest_checkpoint(tmp_path) == first
    for broken in map(Path, (first, third)):
        broken.write_bytes(broken.read_bytes()[:100])
    assert latest_checkpoint(tmp_path) == second


def test_the_latest_checkpoint_under_other_names_and_in_other_folders(state, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    write(run / "pretrained.pth", {"weight": torch.ones(1)}, 9)
    write(run / "best_top1_epoch_3.pth", state, 8)
    write(run / "epoch_1-01234567.pth", {name: state[name] for name in ("meta", "state_dict")}, 7)
    assert latest_checkpoint(run) is None
    model = write(run / "model_1.pth", state, 1)
    assert latest_checkpoint(run) == model
    (run / "model_4.pth").symlink_to(run / "gone.pth")
    (run / "last_checkpoint").write_bytes(b"\0\xff\0")
    assert latest_checkpoint(run) == model
    elsewhere = write(out / "run/iter_20.ckpt", state, 0)
    assert latest_checkpoint(run) == model and latest_checkpoint(run, out) == elsewhere
    (run / "last_checkpoint").write_text(f"{out}/run/gone.pth")
    assert latest_checkpoint(run) == model
    (run / "model_1.pth").unlink()
    assert latest_checkpoint(run) == elsewhere
    (run / "last_checkpoint").write_text("s3://bucket/epoch_1.pth")
    assert latest_checkpoint(run) == "s3://bucket/epoch_1.pth"


def test_folders_are_sharded_checkpoints_unless_they_are_empty(tmp_path):
    (tmp_path / "epoch_1.pth").mkdir()
    with pytest.raises(CheckpointError, match=r"epoch_1\.pth"):
        latest_checkpoint(tmp_path)
    (tmp_path / "epoch_1.pth/shard.pt").write_bytes(b"")
    assert latest_checkpoint(tmp_path) == str(tmp_path / "epoch_1.pth")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda self: os.listdir("/nowhere/at/all"))
    with pytest.raises(OSError, match="nowhere"):
        latest_checkpoint(tmp_path)


def run(monkeypatch, config, tmp_path, resume=None, **options) -> tuple[bool, str | None]:
    """What a training is asked to resume from or load."""

    def stop(cfg, progress):
        raise StopIteration(cfg.get("resume", False), cfg.get("load_from"))

    monkeypatch.setattr("mmrepmlp.verbs.train.train.build_runner", stop)
    with pytest.raises(StopIteration) as caught:
        train(config, str(tmp_path), resume, cfg_options=options)
    return caught.value.args


def test_resume_and_load_from(state, config, monkeypatch, tmp_path):
    start = partial(run, monkeypatch, config, tmp_path)
    assert start("auto") == start(resume=None) == (False, None)
    assert start("auto", load_from="weights.pth") == (False, "weights.pth")
    path = write(tmp_path / "epoch_1.pth", state, 1)
    for options in ({}, {"load_from": "weights.pth"}):
        assert start("auto", **options) == start(path, **options) == (True, path)
    monkeypatch.setattr("mmrepmlp.verbs.train.train.load_config", with_resume)
    assert start() == start(load_from=path) == (True, path)


def with_resume(*args):
    """A config that sets ``resume`` itself, as MMEngine has it."""
    cfg = load_config(*args)
    cfg.resume = True
    return cfg


def test_checkpoints_that_cannot_be_read_stop_the_run(tmp_path):
    for name in ("epoch_1.pth", "iter_20.pth"):
        (tmp_path / name).write_bytes(b"PK")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "gone.pth"))
    with pytest.raises(CheckpointError, match=r"none of its .*gone\.pth.*epoch_1\.pth.*damaged.*--work-dir") as error:
        latest_checkpoint(tmp_path)
    assert "iter_20.pth" in str(error.value)
    with pytest.raises(CheckpointError, match="none of its checkpoints"):
        train(CONFIG, str(tmp_path), resume="auto")
    assert (tmp_path / "epoch_1.pth").read_bytes() == b"PK"
    bare = write(tmp_path / "weights/bare.pth", {"weight": torch.ones(1)}, 0)
    (tmp_path / "weights/last_checkpoint").write_text(bare)
    with pytest.raises(CheckpointError, match=r"bare\.pth holds weights but no optimizer.*--work-dir"):
        latest_checkpoint(tmp_path / "weights")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.head.num_classes": 7}, r"another shape: head.fc.weight \[10, \d+\] \(the model: \[7, \d+\]\)"),
        ({"model.backbone.img_size": 96}, r"of another shape: .*fc3.weight.*load_from"),
        ({"optim_wrapper.paramwise_cfg": None}, r"ValueError: .*epoch_2.pth does not fit .*load_from"),
        ({"optim_wrapper.optimizer": dict(_delete_=True, type="SGD", lr=0.1, weight_decay=0)}, "2.pth does not fit"),
    ],
)
def test_what_cannot_go_on_from_a_checkpoint_is_one_sentence(trained, config, tmp_path, change, message):
    options = {**FEW, "train_cfg.max_epochs": 3, **change}
    with pytest.raises((ExplainedError, ValueError), match=message):
        train(config, str(tmp_path), resume=str(trained.checkpoint), cfg_options=options)
