# SPDX-License-Identifier: Apache-2.0
"""Resume interrupted training."""

from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmrepmlp.checkpoint import CheckpointError, load_from_local, meta_of

SUFFIXES = (".pth", ".pt", ".ckpt")


def latest_checkpoint(work_dir: str | Path, out_dir: str | Path | None = None) -> str | None:
    """Find the newest checkpoint of a run that training can resume from.

    A killed process may leave a truncated checkpoint, and a ``last_checkpoint`` file that is empty or outdated. The
    checkpoint named there comes first, then the newest in the ``out_dir`` of MMEngine's CheckpointHook, in ``work_dir``
    and in the folder of the named one; files that cannot be read or hold no training state are skipped.

    Args:
        work_dir: Work dir of the run.
        out_dir: ``out_dir`` of MMEngine's CheckpointHook. Default: None.

    Returns:
        Path of the checkpoint; None if there is none.

    Raises:
        CheckpointError: There are checkpoints, but none can be resumed. Training from the start would overwrite them.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / "last_checkpoint"
    target = pointer.read_text(errors="replace").strip("\0 \t\r\n") if pointer.is_file() else ""
    if "://" in target:  # MMEngine reads other storage
        return target
    named = [Path(target)] if target else []
    folders = [Path(out_dir, work_dir.name)] if out_dir else []
    folders += [work_dir, *(path.parent for path in named if len(path.parts) > 1)]
    faults = {}
    for path in [*named, *(path for folder in folders for path in newest_first(folder))]:
        try:
            if path.is_dir() and any(path.iterdir()):  # a sharded checkpoint
                return str(path)
            content = load_from_local(path)
            if has_training(content):
                return str(path)
            if path in named:  # other files may be in the folder for other reasons
                faults[path] = f"{path} holds weights but no optimizer."
        except (CheckpointError, OSError) as error:
            print_log(f"Skipped while looking for a checkpoint to resume from: {error}", "current")
            faults[path] = str(error)
    if faults:
        raise CheckpointError(
            f"Nothing to resume from in {work_dir}: none of its checkpoints can be resumed. "
            f"{' '.join(faults.values())} To train from the start, use another --work-dir or move these files away."
        )
    return None


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Set the checkpoint that a run resumes from.

    Args:
        cfg: The config, which is changed.
        checkpoint: Path, or ``"auto"`` for the latest checkpoint in the work dir, if there is one.

    Raises:
        ValueError: The checkpoint holds only weights.
        CheckpointError: The checkpoint cannot be read; with ``"auto"``, no checkpoint in the work dir can be resumed.
    """
    path = checkpoint
    if checkpoint == "auto":
        path = latest_checkpoint(cfg.work_dir, checkpoint_hook(cfg).get("out_dir"))
    elif Path(checkpoint).is_file() and not has_training(load_from_local(checkpoint)):
        raise ValueError(
            f"{checkpoint} holds weights but no optimizer: nothing to resume from. Pass a .pth file of the training, "
            "or start from the weights with --cfg-options load_from=..."
        )
    cfg.resume = path is not None
    if path is not None:
        cfg.load_from = path


def newest_first(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, newest first, without MMEngine's ``best_*``, which have no optimizer."""
    files = [path for path in (folder.iterdir() if folder.is_dir() else ()) if path.suffix in SUFFIXES]
    regular = [path for path in files if not path.name.startswith("best_")]
    return sorted(regular, key=lambda path: path.lstat().st_mtime, reverse=True)


def has_training(content: dict) -> bool:
    """Whether a checkpoint holds training state besides the weights."""
    return meta_of(content).keys() >= {"epoch", "iter"} and "message_hub" in content


def checkpoint_hook(cfg: Config) -> dict:
    """Return the settings of MMEngine's CheckpointHook; empty if the config sets it to None."""
    return (cfg.get("default_hooks") or {}).get("checkpoint") or {}


def make_resumable(cfg: Config) -> list[str]:
    """Change a config so that interrupted training can resume, in deterministic mode exactly.

    Returns:
        A sentence with the reason for each change.
    """
    changes = []
    checkpoint = checkpoint_hook(cfg)
    if checkpoint.get("max_keep_ckpts") == 1:
        checkpoint.max_keep_ckpts = 2
        changes.append(
            "max_keep_ckpts is 2 instead of 1: MMEngine removes the oldest checkpoint before it writes the next, so "
            "that a run killed in between would leave none."
        )
    if (cfg.get("randomness") or {}).get("deterministic"):
        cfg.train_dataloader.persistent_workers = False
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type="mmrepmlp.EpochSeedHook")]
        changes.append(
            "EpochSeedHook added, and persistent_workers is False, so that a resumed run draws the same random numbers "
            "as an uninterrupted one (randomness.deterministic is set)."
        )
    return changes
