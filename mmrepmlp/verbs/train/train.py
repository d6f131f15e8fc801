# SPDX-License-Identifier: Apache-2.0
"""Train models from configs of mmpretrain, mmsegmentation and mmdetection."""

from pathlib import Path

from mmengine.device import get_device
from mmengine.runner import Runner

from mmrepmlp.checkpoint import abbreviate
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import load_config, require
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.model import iter_dicts
from mmrepmlp.verbs.progress import show_progress
from mmrepmlp.verbs.runner import add_hooks, build_runner

from .resume import make_resumable, newest_first, resume_from

BROADCAST = "with several processes, the validated weights are the saved ones."
WITHOUT_CONSTRUCTOR = (
    "gradient_reparam=True only changes the initial weights: for it to take effect in training, set "
    "optim_wrapper.constructor='mmrepmlp.RepOptimizerConstructor'."
)


def train(
    config: str | Path,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: dict | None = None,
    launcher: str = "none",
    progress: bool = False,
) -> Runner:
    """Train a model.

    Args:
        config: Path of the config file, or ``package::path``.
        work_dir: Folder for logs and checkpoints. Default: the config's, or ``work_dirs/<config name>``.
        resume: Checkpoint to resume from, or ``"auto"`` for the latest readable one in ``work_dir``; if there is none,
            training starts anew, from the config's ``load_from`` if set. Default: the config's ``resume``. With
            ``randomness.deterministic``, a resumed run computes exactly the same as an uninterrupted one.
        amp: Whether to train with automatic mixed precision. Default: False.
        auto_scale_lr: Whether to scale the learning rate with the actual batch size. Default: False.
        cfg_options: Config settings to override, by dotted name. Default: None.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.
        progress: Whether to print a progress bar, metrics and warnings instead of the log, which then goes only to its
            file. Default: False.

    Returns:
        The runner, after training.

    Raises:
        MMRepMLPError: ``amp`` is set and there is no GPU, or the environment of the launcher is incomplete.
        ExplainedError: A neck or head does not fit the backbone, or a dataset is missing.
        CheckpointError: The checkpoint to resume from cannot be read.
        ValueError: The config has nothing to train, or no base batch size with ``auto_scale_lr``; or an annotation has
            a class that the model does not have.
    """
    cfg = load_config(config, cfg_options, work_dir, launcher)
    require(cfg, "train_dataloader", "train_cfg", "optim_wrapper")
    if amp:
        if get_device() == "cpu":
            raise MMRepMLPError("--amp uses MMEngine's AmpOptimWrapper, which needs a GPU, and none is available.")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise ValueError(
                f"{config} has no auto_scale_lr.base_batch_size, which --auto-scale-lr scales the learning rate by. "
                "Add it, or omit --auto-scale-lr."
            )
        cfg.auto_scale_lr.enable = True
    changes, earlier = make_resumable(cfg), newest_first(Path(cfg.work_dir))
    resume = resume or (cfg.get("resume") and (cfg.get("load_from") or "auto"))
    if resume:
        resume_from(cfg, resume)
    with explained(cfg):
        runner = build_runner(cfg, progress)
        for change in changes:
            runner.logger.info(change)
        add_hooks(runner, {"BroadcastBuffersHook": BROADCAST})
        if earlier and not cfg.get("resume"):
            runner.logger.warning(
                f"{cfg.work_dir} already has checkpoints: {abbreviate(path.name for path in earlier)}. This run writes "
                "beside or over them; --resume continues from the latest, --work-dir separates the runs."
            )
        by_gradients = any(part.get("gradient_reparam") for part in iter_dicts(cfg.model))
        if by_gradients and "constructor" not in cfg.optim_wrapper:
            runner.logger.warning(WITHOUT_CONSTRUCTOR)
        with show_progress(runner):
            runner.train()
    return runner
