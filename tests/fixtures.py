# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from pathlib import Path

import pytest
from mmengine.config import Config

from mmrepmlp.apis import train
from mmrepmlp.datasets import write_digits

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py")


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
    """The config with these settings in a file, for what takes no settings to override."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(options)
    path = tmp_path_factory.mktemp("config") / "config.py"
    cfg.dump(path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, options) -> TrainedRun:
    work_dir = tmp_path_factory.mktemp("run")
    train(CONFIG, work_dir=str(work_dir), cfg_options=options)
    return TrainedRun(work_dir, options)
