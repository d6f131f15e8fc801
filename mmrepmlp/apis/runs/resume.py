# SPDX-License-Identifier: Apache-2.0
"""Resuming of interrupted training."""

from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmrepmlp.checkpoint import CheckpointError, load_from_local


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """Find the newest checkpoint of a run that can be read.

    A killed process may leave a truncated checkpoint, and a ``last_checkpoint`` that is empty or outdated.

    Args:
        work_dir: Folder of the run.

    Returns:
        The checkpoint that ``last_checkpoint`` names, else the newest complete one; None if there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, of which none can be read. A training from the start would overwrite
            them.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / "last_checkpoint"
    name = pointer.read_text().strip() if pointer.is_file() else ""
    if "://" in name:  # CheckpointHook.out_dir is remote
        return name
    named = [Path(name)] if name else []
    others = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in work_dir.glob(pattern)]
    faults = {}
    for path in named + sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        if path.is_dir():  # a sharded checkpoint
            return str(path)
        try:
            load_from_local(path)
        except (CheckpointError, FileNotFoundError) as error:
            print_log(f"Skipped in search of a checkpoint to resume: {error}", "current")
            faults[path] = str(error)
        else:
            return str(path)
    if faults:
        raise CheckpointError(
            f"Nothing to resume from in {work_dir}: none of its checkpoints can be read. "
            f"{' '.join(faults.values())} To train from the start, use another --work-dir or move these files away."
        )
    return None


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Set what a run resumes from.

    Args:
        cfg: The run's config. Where there is nothing to resume from yet, its ``load_from`` stays.
        checkpoint: A checkpoint, or ``"auto"`` for the latest readable one in the config's ``work_dir``.

    Raises:
        CheckpointError: There are checkpoints in ``work_dir``, of which none can be read.
        ValueError: ``checkpoint`` is a safetensors file.
    """
    path = latest_checkpoint(cfg.work_dir) if checkpoint == "auto" else checkpoint
    if path and Path(path).suffix == ".safetensors":
        raise ValueError(
            f"{path} holds weights and no optimizer: nothing to resume from. Pass a .pth file of the training, "
            "or start from the weights with --cfg-options load_from=..."
        )
    if path:
        cfg.load_from, cfg.resume = path, True


def make_resumable(cfg: Config) -> list[str]:
    """Change a config so that an interrupted training can be resumed, and exactly so in deterministic mode.

    Returns:
        One line per change, with its reason.
    """
    changes = []
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}  # None is how a config drops a hook
    if checkpoint.get("max_keep_ckpts") == 1:
        checkpoint.max_keep_ckpts = 2
        changes.append(
            "max_keep_ckpts is 2 instead of 1: MMEngine removes the oldest checkpoint before it writes the next, and a "
            "training killed in between would leave none."
        )
    if (cfg.get("randomness") or {}).get("deterministic"):
        cfg.train_dataloader.persistent_workers = False
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type="mmrepmlp.EpochSeedHook")]
        changes.append(
            "EpochSeedHook is added and persistent_workers is False, so that a resumed training draws the same "
            "random numbers as an uninterrupted one (randomness.deterministic is set)."
        )
    return changes
