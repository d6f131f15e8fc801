# SPDX-License-Identifier: Apache-2.0
"""Trainings that are repeated with several seeds."""

from pathlib import Path

from mmengine.config import Config
from torch import Tensor

from mmrepmlp.checkpoint import load_from_local, meta_of, unwrap
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.train.resume import latest_checkpoint
from mmrepmlp.verbs.train.train import train


def train_once(config: str | Path, folder: Path, seed: int, cfg_options: dict | None = None) -> dict[str, Tensor]:
    """The weights of a config trained in a folder; a training that was interrupted goes on, a finished one is read.

    Args:
        config: The config.
        folder: Folder of the run.
        seed: Seed of the run.
        cfg_options: Settings to override, by dotted names. Default: None.
    """
    options = {**(cfg_options or {}), "randomness.seed": seed}
    print(f"{folder.name}")
    if not is_finished(read_config(config, options), folder):
        train(config, str(folder), "auto", cfg_options=options, progress=True)
    return unwrap(load_from_local(latest_checkpoint(folder)))


def is_finished(cfg: Config, folder: Path) -> bool:
    """Whether the last checkpoint in the folder of a run is of its end."""
    path = latest_checkpoint(folder)
    meta = meta_of(load_from_local(path)) if path else {}
    return any(
        cfg.train_cfg.get(length) and meta.get(done, 0) >= cfg.train_cfg[length]
        for length, done in (("max_epochs", "epoch"), ("max_iters", "iter"))
    )
