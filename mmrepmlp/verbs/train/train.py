# SPDX-License-Identifier: Apache-2.0
"""Training, for configs of mmpretrain, mmsegmentation and mmdetection alike."""

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

BROADCAST = "with several processes, the validated weights are those that are saved."
WITHOUT_CONSTRUCTOR = (
    "gradient_reparam=True changes the initial weights alone: for it to take part in training, set "
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
        work_dir: Folder for logs and checkpoints. Default: the config's, or ``work_dirs/<name of the config>``.
        resume: A checkpoint to resume from, or ``"auto"`` for the latest readable one in ``work_dir``; where there is
            none, the training starts, from the config's ``load_from`` if it has one. Default: the config's ``resume``.
            With ``randomness.deterministic`` a resumed training computes exactly what an uninterrupted one does.
        amp: Whether to train with automatic mixed precision. Default: False.
        auto_scale_lr: Whether to scale the learning rate with the actual batch size. Default: False.
        cfg_options: Settings to override, by dotted names. Default: None.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.
        progress: Whether the terminal gets a progress bar, the metrics and warnings instead of the log, which its file
            has in full. Default: False.

    Returns:
        The runner, after training.

    Raises:
        MMRepMLPError: ``amp`` is set and there is no GPU.
        ExplainedError: A neck or head does not fit the backbone, or a dataset is not there.
        ValueError: The config sets nothing to train, or no base batch size with ``auto_scale_lr``; an annotation is of
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
                f"{config} has no auto_scale_lr.base_batch_size, from which --auto-scale-lr scales the learning rate. "
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
                f"{cfg.work_dir} has checkpoints already: {abbreviate(path.name for path in earlier)}. Those of this "
                "training are written beside or over them; --resume goes on with the last, --work-dir separates them."
            )
        by_gradients = any(part.get("gradient_reparam") for part in iter_dicts(cfg.model))
        if by_gradients and "constructor" not in cfg.optim_wrapper:
            runner.logger.warning(WITHOUT_CONSTRUCTOR)
        with show_progress(runner):
            runner.train()
    return runner
