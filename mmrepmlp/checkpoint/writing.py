# SPDX-License-Identifier: Apache-2.0
"""Write files atomically."""

import errno
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import mmengine
import torch
from safetensors.torch import save_file


def check_overwrite(*paths: str | os.PathLike, overwrite: bool) -> None:
    """Raise an error if a file or folder to be written exists and must not be overwritten."""
    for path in paths:
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{path} already exists; choose another path or pass overwrite (--overwrite).")


@contextmanager
def atomic_write(path: str | os.PathLike, named_after: str | os.PathLike | None = None) -> Iterator[Path]:
    """Write a file atomically.

    Yields the path of a temporary file in the same folder. On success the file is flushed to disk and renamed to
    ``path``; on an exception ``path`` stays unchanged and the temporary file is removed. Temporary files left by
    killed processes are removed as well. If ``path`` depends on the content, e.g. ends in a hash, temporary files are
    ``named_after`` another path, which the next process knows.
    """
    with temporary_path(Path(named_after or path)) as temporary:
        yield temporary
        commit(temporary, Path(path))


@contextmanager
def atomic_folder(path: str | os.PathLike, durable: bool = True) -> Iterator[Path]:
    """Write a folder atomically: yields a temporary folder beside it, which takes its place on success.

    A folder that exists is replaced, whatever is in it; on an exception it stays unchanged. Temporary folders left by
    killed processes are removed, and a folder that one had moved away to replace it is put back. ``durable`` flushes
    each file to disk, which takes milliseconds.
    """
    path = Path(path)
    replaced = path.with_name(f".{path.name}.replaced")
    with temporary_path(path, is_folder=True) as temporary:
        restore(path, replaced)
        yield temporary
        for file in temporary.rglob("*") if durable else ():
            flush(file)
        if path.exists():
            path.rename(replaced)
        try:
            temporary.rename(path)
        finally:
            restore(path, replaced)
        flush(path.parent)


def restore(path: Path, replaced: Path) -> None:
    """Finish the replacement of a folder: remove the old one if there is a new one, else put it back."""
    if path.exists():
        remove(replaced)
    elif replaced.exists():
        replaced.rename(path)


@contextmanager
def temporary_path(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Make a file or folder beside ``path``, locked while it is written, and removed at the end unless renamed."""
    import fcntl  # Windows lacks it

    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not is_folder:
            raise IsADirectoryError(errno.EISDIR, "It is a folder")
        remove_leftovers(path)
        if is_folder:
            temporary.mkdir()
        else:
            temporary.touch()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
    finally:
        remove(temporary)
        os.close(handle)


@contextmanager
def explained_path(path: str | os.PathLike) -> Iterator[None]:
    """Name a path that cannot be written, and why, in an error of the kind that the system raised."""
    try:
        yield
    except OSError as error:
        inside = [str(parent) for parent in Path(path).parents if parent.exists() and not parent.is_dir()]
        reason = f"{inside[0]} is a file" if inside else error.strerror or str(error)
        raise type(error)(f"{path} cannot be written: {reason}. Choose another path.") from error


def check_folder(path: str | os.PathLike) -> None:
    """Create a folder unless it exists, and check that files can be written to it."""
    with explained_path(path):
        if Path(path).is_file():
            raise NotADirectoryError(errno.ENOTDIR, "It is a file")
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Flush a file to disk and rename it to ``path``."""
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders for ``path`` that no process is writing: a lock is released when its process
    ends."""
    import fcntl

    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(BlockingIOError, FileNotFoundError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(leftover)
            finally:
                os.close(handle)


def save_checkpoint(checkpoint: Mapping, path: str | os.PathLike) -> None:
    """Write a checkpoint atomically, as safetensors if the suffix is ``.safetensors``, else with ``torch.save``."""
    with atomic_write(path) as temporary:
        write_checkpoint(checkpoint, temporary, Path(path).suffix == ".safetensors")


def save_hashed(
    checkpoint: Mapping, path: str | os.PathLike, check: Callable[[Path], object] = lambda written: None
) -> Path:
    """Write a checkpoint as :func:`save_checkpoint` does, under a name that ends in the file's hash, and return its
    path, e.g. ``deploy-0123abcd.pth`` for ``deploy.pth``.

    ``check`` is called with the temporary file that was written: if it raises an error, no file is kept.
    """
    path = Path(path)
    with temporary_path(path) as temporary:
        write_checkpoint(checkpoint, temporary, path.suffix == ".safetensors")
        hashed = path.with_stem(f"{path.stem}-{file_hash(temporary)}")
        check(temporary)
        commit(temporary, hashed)
    return hashed


def write_checkpoint(checkpoint: Mapping, file: Path, safetensors: bool) -> None:
    """Write a checkpoint to a temporary file, with ``torch.save`` or as safetensors, which only takes ``state_dict``
    and ``meta``."""
    if not safetensors:
        with file.open("wb") as stream:  # torch.save would store the name of a path, which would change the hash
            try:
                torch.save(checkpoint, stream)
            except RuntimeError as error:  # torch's, about a truncated file, hides that of the disk
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        return
    unsupported = sorted(checkpoint.keys() - {"state_dict", "meta"})
    if unsupported:
        raise ValueError(
            f"safetensors stores tensors and text, not {', '.join(unsupported)}. Write a .pth file instead."
        )
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in checkpoint["state_dict"].items()}
    save_file(tensors, file, {"meta": mmengine.dump(checkpoint.get("meta", {}), file_format="json")})


def file_hash(path: str | os.PathLike, digits: int = 8) -> str:
    """Return the first digits of a file's SHA-256, by default as many as in the names of OpenMMLab's checkpoints."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:digits]
