# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: read safely, written whole or not at all."""

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier
from mmengine.runner import CheckpointLoader


class CheckpointError(RuntimeError):
    """A file is no checkpoint that can be read, or not one that may be."""


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str | os.PathLike, map_location: Any = "cpu") -> dict:
    """Read a checkpoint without running code that it may hold.

    Once this package is imported, MMEngine reads local files with it, so that ``load_from``, ``--resume`` and
    ``init_cfg=dict(type='Pretrained')`` behave alike.

    Args:
        filename: Path of a file that ``torch.save`` wrote.
        map_location: Where to put the tensors. Default: ``"cpu"``.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is empty, damaged, no checkpoint, or holds code.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty. Copy or download it again.")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except PermissionError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(explain_failure(path, error)) from error


@CheckpointLoader.register_scheme(prefixes=("http://", "https://"), force=True)
def load_from_url(filename: str, map_location: Any = "cpu", model_dir: str | None = None) -> dict:
    """Download a checkpoint, unless that was done before, and read it without running code that it may hold.

    MMEngine reads addresses with it once this package is imported; its own loader would run such code.

    Args:
        filename: Address, http or https.
        map_location: Where to put the tensors. Default: ``"cpu"``.
        model_dir: Folder for downloads. Default: torch's, ``~/.cache/torch/hub/checkpoints``.

    Returns:
        What the file holds.

    Raises:
        CheckpointError: The file cannot be downloaded, or what was downloaded cannot be read.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    path = folder / Path(urlparse(filename).path).name
    if not path.exists() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(filename, str(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{filename} cannot be downloaded: {error}. Download it elsewhere and give its path instead."
            ) from error
    barrier()
    return load_from_local(path, map_location)


def explain_failure(path: Path, error: Exception) -> str:
    """Say why a file could not be loaded, naming what it holds besides tensors if that is the reason."""
    # Between a preamble and a pointer to torch's documentation stands the reason, in a paragraph of its own.
    paragraphs = [text.strip() for text in str(error).split("\n\n") if text.strip()]
    reason = (paragraphs[1] if len(paragraphs) > 2 else f"{type(error).__name__} {error}").splitlines()[0].rstrip(".")
    if "GLOBAL" in reason or "refused" in reason:
        return (
            f"{path} holds more than tensors: {reason}. Loading it may run code, so it is refused. Ask whoever made "
            "it for the bare state dict."
        )
    return (
        f"{path} ({path.stat().st_size} bytes) is damaged or no checkpoint of torch.save: {reason}. Copy or download "
        "it again."
    )


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields the path of a temporary file in the same folder. When the block ends well, the file is flushed to disk and
    takes the place of ``path``; when it does not, ``path`` stays as it was and the temporary file goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~current_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def current_umask() -> int:
    """The process's file mode mask; the only way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint with ``torch.save``, whole or not at all."""
    with atomic_write(path) as temporary:
        torch.save(checkpoint, temporary)
