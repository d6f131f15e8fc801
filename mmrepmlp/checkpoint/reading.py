# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files, of torch.save or safetensors, read without running code that they may hold."""

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.dist import barrier
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open

from mmrepmlp.errors import MMRepMLPError


class CheckpointError(MMRepMLPError):
    """A file is no checkpoint that can be read, or not one that may be."""


def load_from_local(filename: str | os.PathLike, map_location: Any = "cpu", allow_unsafe: bool = False) -> dict:
    """Read a checkpoint without running code that it may hold.

    Once this package is imported, MMEngine reads local files with it, so that ``load_from``, ``--resume`` and
    ``init_cfg=dict(type='Pretrained')`` behave alike.

    Args:
        filename: Path of a file that ``torch.save`` wrote, or of a ``.safetensors`` file.
        map_location: Where to put the tensors. Default: ``"cpu"``.
        allow_unsafe: Whether to run code that the file holds, with all the rights of the user. Default: False.

    Returns:
        What the file holds; for safetensors, the tensors under ``state_dict`` and the metadata under ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is empty, damaged, no checkpoint, or holds code.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty. Copy or download it again.")
    if allow_unsafe:
        print_log(f"Code that {path} may hold is run, since unsafe loading was asked for.", "current")
    try:
        if is_safetensors(path):
            return read_safetensors(path, map_location)
        return torch.load(path, map_location=map_location, weights_only=not allow_unsafe)
    except PermissionError:
        raise
    except (ModuleNotFoundError, AttributeError) as error:
        raise CheckpointError(f"{path} holds objects of a package that is not installed: {error}.") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(explain_failure(path, error)) from error


def is_safetensors(path: Path) -> bool:
    """Tell by the name, or by the content: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (
        start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    )


def read_safetensors(path: Path, map_location: Any) -> dict:
    """Read tensors and metadata of a safetensors file, laid out as a checkpoint."""
    with safe_open(path, framework="pt", device=str(map_location or "cpu")) as file:
        names = file.keys()
        meta = (file.metadata() or {}).get("meta", "{}")
        return {
            "meta": mmengine.load(io.StringIO(meta), file_format="json"),
            "state_dict": {name: file.get_tensor(name) for name in names},
        }


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
    text = str(error)
    # torch names an object of a type that is not allowed as GLOBAL; "refused" is our own stand-in's word.
    held = re.search(r"GLOBAL (\S+)", text) or re.search(r"\w+\(.*\)(?= is refused)", text)
    if held:
        return (
            f"{path} holds more than tensors: {held[held.lastindex or 0]}. Loading it may run code, so it is refused. "
            "Ask whoever made it for the bare state dict. If you trust them: tools/reparameterize.py and the tools in "
            "tools/model_converters/ write files that load everywhere, and their --allow-unsafe runs that code, with "
            "all your rights."
        )
    # torch surrounds the reason with advice.
    reason = re.search(r"WeightsUnpickler error: (.+)", text) or re.match(r"(.+)", f"{type(error).__name__} {text}")
    reason = reason[1].strip().rstrip(".")
    return f"{path} ({path.stat().st_size} bytes) is damaged or no checkpoint: {reason}. Copy or download it again."
