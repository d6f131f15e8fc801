# SPDX-License-Identifier: Apache-2.0
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrepmlp.checkpoint import check_overwrite


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder atomically.

    Yields a temporary folder next to ``path``. On success it is renamed to ``path``; on an exception ``path`` stays
    unchanged and the temporary folder is removed.

    Args:
        path: Folder to create.
        overwrite: Whether an existing folder may be replaced. Default: False.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is not set.
    """
    path = Path(path)
    check_overwrite(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
