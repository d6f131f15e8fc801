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
    named = [Path(pointer.read_text().strip())] if pointer.is_file() else []
    others = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in work_dir.glob(pattern)]
    faults = {}
    for path in named + sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        if not path.name:  # of an empty pointer
            continue
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


def check_resumable(checkpoint: str | None) -> None:
    """Check that a file can hold the state of a training.

    Raises:
        ValueError: It is a safetensors file.
    """
    if checkpoint and Path(checkpoint).suffix == ".safetensors":
        raise ValueError(
            f"{checkpoint} holds weights and no optimizer: nothing to resume from. Pass a .pth file of the training, "
            "or start from the weights with --cfg-options load_from=..."
        )


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
