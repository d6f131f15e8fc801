# SPDX-License-Identifier: Apache-2.0
"""Training and testing, for configs of mmpretrain, mmsegmentation and mmdetection alike."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .checks import check_config
from .config import read_config
from .distributed import hold_whole_model, prepare_processes
from .resume import check_resumable, latest_checkpoint, make_resumable


class DumpPredictions(DumpResults):
    """MMEngine's dump of predictions without the scores of every pixel, which fill a disk."""

    def process(self, data_batch: dict, predictions: Sequence[dict]) -> None:
        """Keep the predictions of a batch."""
        super().process(data_batch, [{key: p[key] for key in p if key != "seg_logits"} for p in predictions])


def load_config(
    config: str | Path, cfg_options: dict | None = None, work_dir: str | None = None, launcher: str = "none"
) -> Config:
    """Read a config and settle where its run writes.

    Args:
        config: Path of the config file, or ``package::path``.
        cfg_options: Settings to override, by dotted names. Default: None.
        work_dir: Folder for logs and checkpoints. Default: the config's, or ``work_dirs/<name of the config>``.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.
    """
    cfg = read_config(config)
    cfg.launcher = launcher
    cfg.merge_from_dict(cfg_options or {})
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(config).stem)
    if cfg.get("default_scope") == "mmpretrain":
        # As mmpretrain's own tools have it; its configs rely on them.
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if cfg.get(name) is not None:
                defaults = dict(persistent_workers=cfg[name].get("num_workers", 0) > 0)
                cfg[name] = ConfigDict({**defaults, "collate_fn": dict(type="default_collate"), **cfg[name]})
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config names, ready to run with the other processes of its launcher."""
    prepare_processes(cfg)
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)


def train(
    config: str | Path,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: dict | None = None,
    launcher: str = "none",
) -> Runner:
    """Train a model.

    Args:
        config: Path of the config file, or ``package::path``.
        work_dir: Folder for logs and checkpoints. Default: the config's, or ``work_dirs/<name of the config>``.
        resume: A checkpoint to go on from, or ``"auto"`` for the latest in ``work_dir`` that can be read. Default:
            None. With ``randomness.deterministic`` a resumed training computes exactly what one without interruption
            does.
        amp: Whether to train with automatic mixed precision. Default: False.
        auto_scale_lr: Whether to scale the learning rate with the actual batch size. Default: False.
        cfg_options: Settings to override, by dotted names. Default: None.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.

    Returns:
        The runner, after training.

    Raises:
        RuntimeError: ``amp`` is asked for and there is no GPU.
        ValueError: ``auto_scale_lr`` is asked for and the config does not say for which batch size its rate is; a head
            does not fit the backbone; an annotation is of a class that the model does not have.
        FileNotFoundError: A data set is not there.
    """
    cfg = load_config(config, cfg_options, work_dir, launcher)
    check_config(cfg, "train", "val")
    if amp:
        if not torch.cuda.is_available():
            raise RuntimeError("--amp is MMEngine's AmpOptimWrapper, which needs a GPU, and there is none.")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ValueError(f"{config} has no auto_scale_lr.base_batch_size, which --auto-scale-lr scales from.")
        cfg.auto_scale_lr.enable = True
    make_resumable(cfg)
    if resume:
        cfg.load_from = latest_checkpoint(cfg.work_dir) if resume == "auto" else resume
        cfg.resume = bool(cfg.load_from)
        check_resumable(cfg.load_from)
    runner = build_runner(cfg)
    runner.register_hook(dict(type="mmrepmlp.CheckAnnotationsHook"))
    runner.register_hook(dict(type="mmrepmlp.BroadcastBuffersHook"))
    runner.train()
    return runner


def test(
    config: str | Path,
    checkpoint: str | Path | None = None,
    work_dir: str | None = None,
    out: str | None = None,
    deploy: bool = False,
    cfg_options: dict | None = None,
    launcher: str = "none",
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set.

    Args:
        config: Path of the config file, or ``package::path``.
        checkpoint: Path of the checkpoint. Default: the config's ``load_from``.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        out: Pickle file for the predictions. Default: None.
        deploy: Whether to convert the model to deploy form first. Default: False.
        cfg_options: Settings to override, by dotted names. Default: None.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.

    Returns:
        The metrics.

    Raises:
        ValueError: A head does not fit the backbone, or no checkpoint is named.
        FileNotFoundError: A data set is not there.
    """
    cfg = load_config(config, cfg_options, work_dir, launcher)
    check_config(cfg, "test")
    if checkpoint is None and not cfg.get("load_from"):
        raise ValueError(f"No checkpoint is given, and {config} names none in load_from. Give one.")
    cfg.load_from = str(checkpoint or cfg.load_from)
    hold_whole_model(cfg)
    if deploy:
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type="mmrepmlp.SwitchToDeployHook")]
    runner = build_runner(cfg)
    if out:
        runner.test_evaluator.metrics.append(DumpPredictions(out_file_path=out))
    return runner.test()
