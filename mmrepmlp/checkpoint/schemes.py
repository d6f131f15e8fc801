# SPDX-License-Identifier: Apache-2.0
"""What MMEngine calls to load a checkpoint, by the scheme of its name: :data:`LOADERS`.

MMEngine resolves the names, by its tables and storage backends; the files are read as :mod:`reading` does, without
executing code that they may contain.
"""

import difflib
import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_distributed
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint

from .reading import CheckpointError, load_from_local
from .unwrap import unwrap


def load_from_disk(filename: str | os.PathLike, map_location: Any = "cpu") -> dict:
    """Read a checkpoint as :func:`load_from_local` does, and give its weights the name under which MMEngine looks.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file cannot be read, or contains code.
    """
    content = load_from_local(filename, map_location)
    try:
        state = unwrap(content)
    except ValueError as error:  # perhaps its reader knows what it is
        print_log(f"{filename}: {error}", "current", logging.WARNING)
        if not isinstance(content.get("state_dict", {}), Mapping):
            del content["state_dict"]  # MMEngine would take it for one
        return content
    given = content.get("state_dict", content)
    prefix = requested_prefix()
    if prefix and isinstance(given, Mapping) and any(str(name).startswith(prefix) for name in given):
        return content
    if isinstance(given, Mapping) and given.keys() == state.keys():
        given.update(state)  # the same object, since it may have attributes
    else:
        content["state_dict"] = state
    return content


def requested_prefix() -> str | None:
    """The ``prefix`` of the ``init_cfg`` that MMEngine is loading for: it may be one that :func:`unwrap` removes."""
    code = mmengine_checkpoint._load_checkpoint_with_prefix.__code__
    callers = (frame for frame, _ in traceback.walk_stack(None))
    return next((caller.f_locals["prefix"] for caller in callers if caller.f_code is code), None)


def load_from_url(filename: str, map_location: Any = "cpu", model_dir: str | None = None) -> dict:
    """Download a checkpoint, unless it is cached, and read it without executing code that it may contain.

    Args:
        filename: URL, http or https.
        map_location: Device of the tensors. Default: ``"cpu"``.
        model_dir: Folder for downloads. Default: torch's, ``~/.cache/torch/hub/checkpoints``.

    Returns:
        The content of the file.

    Raises:
        CheckpointError: The file cannot be downloaded or read.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    path = folder / Path(urlparse(filename).path).name
    another_process_downloads = is_distributed() and int(os.environ.get("LOCAL_RANK", 0)) > 0
    if not path.exists() and not another_process_downloads:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(filename, str(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{filename} cannot be downloaded: {error}. Download it elsewhere and give its path instead."
            ) from error
    barrier()
    return load_from_disk(path, map_location)


def load_from_torchvision(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint of torchvision by its name, such as ``torchvision://resnet50``.

    Raises:
        CheckpointError: There is none of this name, or it cannot be downloaded or read.
    """
    return load_from_url(find(filename, mmengine_checkpoint.get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint that MMEngine's tables list, such as ``open-mmlab://detectron2/resnet50_caffe``.

    Raises:
        CheckpointError: There is none of this name, or it cannot be downloaded or read.
        FileNotFoundError: The user's own table names a file that is not there.
    """
    scheme, _, name = filename.partition("://")
    successor = mmengine_checkpoint.get_deprecated_model_names().get(name)
    if successor:
        print_log(f"{filename} is deprecated; {scheme}://{successor} is loaded.", "current", logging.WARNING)
        filename = f"{scheme}://{successor}"
    target = find(filename, mmengine_checkpoint.get_external_models())
    if "://" in target:
        return load_from_url(target, map_location)
    return load_from_disk(Path(mmengine_checkpoint._get_mmengine_home(), target), map_location)


def load_from_mmcls(filename: str, map_location: Any = "cpu") -> dict:
    """Load the backbone of a classifier by its name, such as ``mmcls://resnet50``.

    Raises:
        CheckpointError: There is none of this name, or it cannot be downloaded or read.
    """
    content = load_from_url(find(filename, mmengine_checkpoint.get_mmcls_models()), map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(content)


def load_from_ceph(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint from a Ceph cluster, by MMEngine's backend ``petrel``.

    Raises:
        ImportError: The backend's package is not installed.
        CheckpointError: The file cannot be read.
    """
    content = get_file_backend(filename, backend_args=dict(backend="petrel")).get(filename)
    return load_copy(filename, map_location, lambda path: Path(path).write_bytes(content))


def load_from_pavi(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint from Pavi, by its own client.

    Raises:
        ImportError: The client is not installed.
        CheckpointError: The file cannot be read.
    """
    try:
        from pavi import modelcloud
    except ImportError:
        raise ImportError(f"{filename} takes the package pavi, which is not installed.") from None
    return load_copy(filename, map_location, modelcloud.get(filename.removeprefix("pavi://")).download)


def load_copy(filename: str, map_location: Any, download: Callable[[str], Any]) -> dict:
    """Load a checkpoint from a temporary file, to whose path it is downloaded.

    Raises:
        CheckpointError: It cannot be read; the message names the original.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "checkpoint"))
        download(path)
        try:
            return load_from_disk(path, map_location)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(path, filename)) from error


def find(filename: str, table: Mapping[str, str]) -> str:
    """Look the name behind a scheme up in one of MMEngine's tables.

    Raises:
        CheckpointError: It is not in the table.
    """
    scheme, _, name = filename.partition("://")
    if name not in table:
        similar = [f"{scheme}://{known}" for known in difflib.get_close_matches(name, table)]
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        raise CheckpointError(f"{filename} is not in MMEngine's table of models.{hint}")
    return table[name]


# By MMEngine's patterns of names. Its log prints the names of the functions from the eleventh letter on.
LOADERS: dict[str, Callable[[str, Any], dict]] = {
    "": load_from_disk,
    "http://": load_from_url,
    "https://": load_from_url,
    "torchvision://": load_from_torchvision,
    "modelzoo://": load_from_torchvision,  # its deprecated name
    "open-mmlab://": load_from_openmmlab,
    "openmmlab://": load_from_openmmlab,
    "mmcls://": load_from_mmcls,
    r"(\S+\:)?s3://": load_from_ceph,
    r"(\S+\:)?petrel://": load_from_ceph,
    "pavi://": load_from_pavi,
}
