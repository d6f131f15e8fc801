# SPDX-License-Identifier: Apache-2.0
"""Real digits, and what is trained on them in short; ``conftest.py`` hands the fixtures to all tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from mmengine.config import Config

from mmrepmlp.apis import train
from mmrepmlp.datasets import write_detection_scenes, write_digits, write_segmentation_scenes

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py")


def dump_config(config: str | Path, settings: dict, path: Path) -> Path:
    """Write a config with some settings changed to a file, for what takes no settings to override."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(settings)
    cfg.dump(path)
    return path


@dataclass
class TrainedRun:
    """Two epochs on the real digits."""

    work_dir: Path
    options: dict

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / "epoch_2.pth"


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def options(digits) -> dict:
    """Settings that point the config at the digits and make it short."""
    roots = {f"{split}_dataloader.dataset.data_root": str(digits) for split in ("train", "val", "test")}
    workers = {f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")}
    return {
        **roots,
        **workers,
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.checkpoint.max_keep_ckpts": -1,
    }


@pytest.fixture(scope="session")
def config(tmp_path_factory, options) -> Path:
    """The config with these settings in a file."""
    return dump_config(CONFIG, options, tmp_path_factory.mktemp("config") / "config.py")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, options) -> TrainedRun:
    work_dir = tmp_path_factory.mktemp("run")
    train(CONFIG, work_dir=str(work_dir), cfg_options=options)
    return TrainedRun(work_dir, options)


DENSE_CONFIGS = dict(
    seg="upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py",
    det="retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py",
)
WRITERS = dict(seg=write_segmentation_scenes, det=write_detection_scenes)
LENGTH = dict(seg={"train_cfg.max_iters": 3}, det={"train_cfg.max_epochs": 1, "model.test_cfg.score_thr": 0.0})


@dataclass
class ShortRun:
    """A config shortened to a few steps on a few scenes, and what came of it."""

    task: str
    config: str
    checkpoint: Path
    folder: Path


@pytest.fixture(scope="session", params=["seg", "det"])
def short_run(request, tmp_path_factory) -> ShortRun:
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = folder / "scenes"
    WRITERS[task](data, counts=dict(train=32, val=6))
    settings = {f"{split}_dataloader.dataset.data_root": str(data) for split in ("train", "val", "test")}
    settings |= {f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")}
    settings |= {f"{split}_dataloader.persistent_workers": False for split in ("train", "val", "test")}
    settings |= {"model.backbone.init_cfg": None, "default_hooks.checkpoint.interval": 1, **LENGTH[task]}
    if task == "det":
        settings |= {f"{split}_evaluator.ann_file": str(data / "annotations/val.json") for split in ("val", "test")}
    config = str(dump_config(ROOT / "configs" / DENSE_CONFIGS[task], settings, folder / "config.py"))
    train(config, work_dir=str(folder / "run"))
    return ShortRun(task, config, Path((folder / "run/last_checkpoint").read_text()), folder)
