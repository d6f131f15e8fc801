# SPDX-License-Identifier: Apache-2.0
"""Functions that MMEngine calls to load a checkpoint, by the scheme of its name: :data:`LOADERS`.

MMEngine resolves the names, by its tables and storage backends; the files are read as :mod:`reading` does, without
executing code that they may contain.
"""

import difflib
import logging
import os
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
from .unwrap import find_state_dict, tensors_of


def load_from_disk(filename: str | os.PathLike, map_location: Any = "cpu") -> dict:
    """Read a checkpoint as :func:`load_from_local` does, and put its weights where MMEngine looks for them."""
    content = load_from_local(filename, map_location)
    try:
        state = find_state_dict(content)
    except ValueError as error:  # the caller may know what it is
        print_log(f"{filename}: {error}", "current", logging.WARNING)
        if not isinstance(content.get("state_dict", {}), Mapping):
            del content["state_dict"]  # MMEngine would take it for a state dict
        return content
    # In place, since it may have attributes. Prefixes stay: MMEngine may have been asked for one.
    state.update(tensors_of(state))
    for name in [name for name in state if not isinstance(name, str)]:
        del state[name]
    if state is not content:
        content["state_dict"] = state
    return content


def load_from_url(filename: str, map_location: Any = "cpu") -> dict:
    """Download a checkpoint to torch's cache folder, unless it is there, and read it without executing code."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(filename).path).name)
    another_process_downloads = is_distributed() and int(os.environ.get("LOCAL_RANK", 0)) > 0
    if not path.exists() and not another_process_downloads:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(filename, str(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{filename} cannot be downloaded: {error}. Download it elsewhere and give its path instead."
            ) from error
    barrier()
    return load_from_disk(path, map_location)


def load_from_torchvision(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint of torchvision by its name, such as ``torchvision://resnet50``."""
    return load_from_url(find(filename, mmengine_checkpoint.get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint that MMEngine's tables list, such as ``open-mmlab://detectron2/resnet50_caffe``."""
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
    """Load the backbone of a classifier by its name, such as ``mmcls://resnet50``."""
    content = load_from_url(find(filename, mmengine_checkpoint.get_mmcls_models()), map_location)
    state = content.get("state_dict", content).items()
    prefix = "backbone."
    return {"state_dict": {name.removeprefix(prefix): value for name, value in state if name.startswith(prefix)}}


def load_from_storage(filename: str, map_location: Any = "cpu") -> dict:
    """Load a checkpoint from a storage, by the file backend that is registered in MMEngine for its scheme."""
    try:
        backend = get_file_backend(filename)
    except KeyError:
        raise CheckpointError(
            f"No file backend of MMEngine is registered for {filename}. Download it and give its path instead."
        ) from None
    with backend.get_local_path(filename) as path:
        try:
            return load_from_disk(path, map_location)
        except CheckpointError as error:  # it names a temporary copy
            raise CheckpointError(str(error).replace(str(path), filename)) from error


def find(filename: str, table: Mapping[str, str]) -> str:
    """Look up the name after a scheme in one of MMEngine's tables."""
    scheme, _, name = filename.partition("://")
    if name not in table:
        similar = [f"{scheme}://{known}" for known in difflib.get_close_matches(name, table)]
        hint = f" Similar names: {', '.join(similar)}." if similar else ""
        raise CheckpointError(f"{filename} is not in MMEngine's table of models.{hint}")
    return table[name]


# By MMEngine's patterns of names. MMEngine logs the names of the functions from the eleventh letter on.
LOADERS: dict[str, Callable[[str, Any], dict]] = {
    "": load_from_disk,
    "http://": load_from_url,
    "https://": load_from_url,
    "torchvision://": load_from_torchvision,
    "modelzoo://": load_from_torchvision,  # its deprecated name
    "open-mmlab://": load_from_openmmlab,
    "openmmlab://": load_from_openmmlab,
    "mmcls://": load_from_mmcls,
    r"(\S+\:)?s3://": load_from_storage,
    r"(\S+\:)?petrel://": load_from_storage,
    "pavi://": load_from_storage,
}
