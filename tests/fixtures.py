# SPDX-License-Identifier: Apache-2.0
"""Real digits, and what is trained on them in short; ``conftest.py`` hands the fixtures to all tests."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from mmengine.config import Config

from mmrepmlp.apis import train
from mmrepmlp.datasets import write_detection_scenes, write_digits, write_segmentation_scenes
from mmrepmlp.verbs.model import iter_dicts

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
    """Some epochs on the real digits."""

    work_dir: Path
    options: dict
    epochs: int = 2

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / f"epoch_{self.epochs}.pth"


@pytest.fixture(scope="session")
def build_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Build a folder of some name once for all processes that share the tests; the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def build(name: str, write: Callable[[Path], object]) -> Path:
        folder, built = root / "shared" / name, root / f"{name}.built"
        with FileLock(f"{built}.lock"):
            if not built.exists():
                folder.parent.mkdir(exist_ok=True)
                write(folder)
                built.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def digits(build_once) -> Path:
    return build_once("digits", write_digits)


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
def trained(build_once, options) -> TrainedRun:
    work_dir = build_once("trained", lambda folder: train(CONFIG, work_dir=str(folder), cfg_options=options))
    return TrainedRun(work_dir, options)


@pytest.fixture(scope="session")
def learned(build_once, options) -> TrainedRun:
    """Enough training to be sure of most digits, for what compares predictions after rounding."""
    length = {"train_cfg.max_epochs": 4, "train_cfg.val_interval": 5, "default_hooks.checkpoint.interval": 4}
    schedule = {"param_scheduler.0.end": 1, "param_scheduler.1.begin": 1, "param_scheduler.1.end": 4}
    settings = {**options, **length, **schedule, "train_dataloader.batch_size": 32}
    work_dir = build_once("learned", lambda folder: train(CONFIG, work_dir=str(folder), cfg_options=settings))
    return TrainedRun(work_dir, options, epochs=4)


# What makes a framework's heads large, and has nothing to do with what a backbone gives them.
LIMITS = dict(fc_out_channels=32, feedforward_channels=64, stacked_convs=1, num_queries=20, num_proposals=20)


def iter_small_configs(package: str, files: Sequence[Path]) -> Iterator[tuple[Path, Config]]:
    """The configs of a family, with heads that compute in a fraction of the time."""
    from dev.sweep.families import iter_configs  # here, since nothing else of the tests takes what is not installed

    for file, cfg in iter_configs(package, files):
        for part in iter_dicts({key: value for key, value in cfg.model.items() if key != "backbone"}):
            part.update({name: min(part[name], limit) for name, limit in LIMITS.items() if name in part})
            if "layer_cfg" in part:  # a transformer
                part.num_layers = 1
            if "num_classes" in part and part.get("num_convs") != 0:  # a segmentor's head with layers of its own
                part.update({"channels": 32} if "channels" in part else {})
        head = cfg.model.get("roi_head", {})
        if "num_stages" in head:
            train_cfg = cfg.model.train_cfg
            head.num_stages, head.bbox_head, train_cfg.rcnn = 2, head.bbox_head[:2], train_cfg.rcnn[:2]
            head.stage_loss_weights = head.stage_loss_weights[:2]
        yield file, cfg


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
def short_run(request, build_once) -> ShortRun:
    task = request.param
    folder = build_once(task, lambda folder: train_on_scenes(task, folder))
    return ShortRun(task, str(folder / "config.py"), Path((folder / "run/last_checkpoint").read_text()), folder)


def train_on_scenes(task: str, folder: Path) -> None:
    data = folder / "scenes"
    WRITERS[task](data, counts=dict(train=32, val=6))
    settings = {f"{split}_dataloader.dataset.data_root": str(data) for split in ("train", "val", "test")}
    settings |= {f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")}
    settings |= {f"{split}_dataloader.persistent_workers": False for split in ("train", "val", "test")}
    settings |= {"model.backbone.init_cfg": None, "default_hooks.checkpoint.interval": 1, **LENGTH[task]}
    settings |= {"model.backbone.arch.depths": [1, 1, 1, 1]}
    if task == "det":
        settings |= {f"{split}_evaluator.ann_file": str(data / "annotations/val.json") for split in ("val", "test")}
    config = dump_config(ROOT / "configs" / DENSE_CONFIGS[task], settings, folder / "config.py")
    train(config, work_dir=str(folder / "run"))
