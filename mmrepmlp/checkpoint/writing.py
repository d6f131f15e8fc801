# SPDX-License-Identifier: Apache-2.0
"""Files that are written atomically."""

import fcntl
import glob
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import mmengine
import torch
from safetensors.torch import save_file


def check_overwrite(*paths: str | os.PathLike, overwrite: bool) -> None:
    """Refuse to go on where something would be replaced that nobody said may be.

    Args:
        *paths: Files or folders that are about to be written.
        overwrite: Whether they may be replaced.

    Raises:
        FileExistsError: One exists and ``overwrite`` is not set.
    """
    for path in paths:
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{path} already exists; choose another path or pass overwrite (--overwrite).")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file atomically.

    Yields the path of a temporary file in the same folder. When the block ends well, the file is flushed to disk and
    takes the place of ``path``; when it does not, ``path`` stays as it was and the temporary file goes. What a killed
    process left of an earlier try goes as well.
    """
    path = Path(path)
    with temporary_file(path) as temporary:
        yield temporary
        commit(temporary, path)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A file in the folder of ``path``, locked for as long as it is written; it goes unless it is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def commit(temporary: Path, path: Path) -> None:
    """Flush a file to disk and put it in the place of ``path``."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~current_umask())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files for ``path`` that no process writes any more: a lock ends with its process."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(BlockingIOError, FileNotFoundError), file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()


def current_umask() -> int:
    """The process's file mode mask; the only way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_checkpoint(checkpoint: Mapping, path: str | os.PathLike) -> None:
    """Write a checkpoint atomically, as safetensors where the name ends so, else with ``torch.save``."""
    with atomic_write(path) as temporary:
        write_checkpoint(checkpoint, temporary, Path(path).suffix == ".safetensors")


def save_hashed(
    checkpoint: Mapping, path: str | os.PathLike, check: Callable[[Path, Path], object] = lambda written, final: None
) -> Path:
    """Write a checkpoint as :func:`save_checkpoint` does, under a name that ends in the file's hash.

    Args:
        checkpoint: What to write.
        path: What to name the file after.
        check: Called with the file as it was written, under a temporary name, and the name that it will have. What it
            raises goes through, and nothing is left. Default: nothing.

    Returns:
        The file, ``deploy-0123abcd.pth`` for ``deploy.pth``.
    """
    path = Path(path)
    with temporary_file(path) as temporary:
        write_checkpoint(checkpoint, temporary, path.suffix == ".safetensors")
        hashed = path.with_stem(f"{path.stem}-{file_hash(temporary)}")
        check(temporary, hashed)
        commit(temporary, hashed)
    return hashed


def write_checkpoint(checkpoint: Mapping, file: Path, safetensors: bool) -> None:
    """Write a checkpoint into a file that :func:`atomic_write` yields.

    Args:
        checkpoint: What to write; for safetensors, ``state_dict`` and ``meta`` alone.
        file: Where to.
        safetensors: Whether to write safetensors, else with ``torch.save``.

    Raises:
        ValueError: safetensors cannot hold what is asked for.
    """
    if not safetensors:
        with file.open("wb") as stream:  # given a path, torch.save would store its name, and the hash depend on it
            save_to(stream, checkpoint)
        return
    beyond = sorted(checkpoint.keys() - {"state_dict", "meta"})
    if beyond:
        raise ValueError(f"safetensors holds tensors and text, not {', '.join(beyond)}. Write a .pth file instead.")
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in checkpoint["state_dict"].items()}
    save_file(tensors, file, {"meta": mmengine.dump(checkpoint.get("meta", {}), file_format="json")})


def save_to(stream: BinaryIO, checkpoint: Mapping) -> None:
    """Run torch.save on an open file, and let the errors of the disk through."""
    try:
        torch.save(checkpoint, stream)
    except RuntimeError as error:  # torch's complaint about a file that ends early hides the reason
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def file_hash(path: str | os.PathLike) -> str:
    """First 8 digits of a file's sha256, which OpenMMLab ends the names of published checkpoints with."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:8]
