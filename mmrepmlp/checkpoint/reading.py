# SPDX-License-Identifier: Apache-2.0
"""Read checkpoint files of torch.save or safetensors without executing code that they may contain."""

import io
import os
import re
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.logging import print_log
from safetensors import safe_open
from torch import nn

from mmrepmlp.errors import MMRepMLPError

from .plain_data import to_plain, trust_plain_data

ADVICE = "convert it with mmrepmlp reparameterize --allow-unsafe"


class CheckpointError(MMRepMLPError):
    """A checkpoint file cannot be read, or is not safe to read."""


def load_from_local(filename: str | os.PathLike, map_location: Any = "cpu", allow_unsafe: bool = False) -> dict:
    """Read a checkpoint without executing code that it may contain.

    Args:
        filename: Path of a file written by ``torch.save``, or of a ``.safetensors`` file.
        map_location: Device of the tensors, or what else ``torch.load`` takes. Default: ``"cpu"``; None keeps the
            devices in the file where there is a GPU.
        allow_unsafe: Whether to execute code in the file, with all permissions of the user; whole modules in it are
            replaced by their state dicts. Default: False.

    Returns:
        The content of the file; for safetensors, the tensors under ``state_dict`` and the metadata under ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is empty, damaged, not a checkpoint, or contains code; or the device does not exist.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty. Copy or download it again.")
    map_location = check_device(path, map_location)
    try:
        if is_safetensors(path):
            content = read_safetensors(path, map_location)
        elif allow_unsafe:
            print_log(f"Unsafe loading: code that {path} may contain is executed.", "current")
            content = weights_of(torch.load(path, map_location=map_location, weights_only=False))
            content = content if isinstance(content, dict) else {"state_dict": content}
        elif tarfile.is_tarfile(path):  # torch < 2.6 would execute code in it, weights_only or not
            raise CheckpointError(
                f"{path} has torch's first format, tar, which cannot be read safely. If you trust its author, {ADVICE}."
            )
        else:
            with trust_plain_data():
                content = to_plain(torch.load(path, map_location=map_location, weights_only=True))
    except (PermissionError, CheckpointError):
        raise
    except Exception as error:  # the readers raise any on damaged files
        if allow_unsafe and isinstance(error, (ModuleNotFoundError, AttributeError)):
            raise CheckpointError(f"{path} holds objects of a package that is not installed: {error}.") from error
        raise CheckpointError(explain_failure(path, error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a dict of tensors by name.")
    return content


def weights_of(content: object) -> object:
    """Replace each module in nested dicts by its state dict."""
    if isinstance(content, nn.Module):
        return content.state_dict()
    if isinstance(content, dict):
        content.update({name: weights_of(part) for name, part in content.items()})
    return content


def check_device(path: Path, map_location: Any) -> Any:
    """Check that the device to load a file to exists; None becomes the CPU if there is no GPU."""
    if map_location is None and not torch.cuda.is_available():
        return "cpu"
    if isinstance(map_location, (str, torch.device)):
        try:
            torch.empty(0, device=map_location)
        except Exception as error:  # torch's backends raise any
            reason = str(error).split("\n")[0].rstrip(".")
            raise CheckpointError(
                f"{path} cannot be loaded to map_location={str(map_location)!r}: {reason}. Pass 'cpu', or a device of "
                "this machine."
            ) from error
    return map_location


def is_safetensors(path: Path) -> bool:
    """Whether a file is in safetensors format, by its name or its content: the length of a JSON header, the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (
        start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    )


def read_safetensors(path: Path, map_location: Any) -> dict:
    """Read the tensors and metadata of a safetensors file, structured as a checkpoint."""
    device = str(map_location) if isinstance(map_location, (str, torch.device)) else "cpu"
    with safe_open(path, framework="pt", device=device) as file:
        names = file.keys()
        state = {name: file.get_tensor(name) for name in names}
        meta = (file.metadata() or {}).get("meta", "{}")
    try:
        return {"meta": mmengine.load(io.StringIO(meta), file_format="json"), "state_dict": state}
    except ValueError:  # metadata of another program
        return {"meta": {}, "state_dict": state}


def explain_failure(path: Path, error: Exception) -> str:
    """Explain why a file could not be loaded, naming the objects besides tensors if they are the reason."""
    text = str(error)
    # torch names what is not on its list as GLOBAL or class; the last are refusals of plain_data.py.
    held = re.search(r"GLOBAL (\S+)|but got <class '(.+?)'>|error: (.+) is not read", text)
    if held:
        return (
            f"{path} holds more than tensors: {held[held.lastindex]}. Loading it may run code, so it is refused. Ask "
            f"its author for the plain state dict, or, if you trust the author, {ADVICE}: that runs the code with all "
            "your permissions, and what it writes loads everywhere."
        )
    parts = set()
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        parts = {name.partition("/")[2] for name in file.namelist()}
    if "constants.pkl" in parts:
        return f"{path} is a TorchScript program. To take its weights, if you trust its author, {ADVICE}."
    # torch's message surrounds the reason with advice.
    reason = re.search(r"WeightsUnpickler error:\s+(.+)", text) or re.match(r"(.+)", f"{type(error).__name__} {text}")
    reason = reason[1].split(". In PyTorch")[0].strip().rstrip(".")
    if "Unsupported operand" in reason and parts:
        return (
            f"{path} was saved with a pickle_protocol other than 2, which torch does not read safely ({reason}). Ask "
            f"its author for a file that torch.save wrote by default, or, if you trust the author, {ADVICE}."
        )
    return f"{path} ({path.stat().st_size} bytes) is damaged or not a checkpoint: {reason}. Copy or download it again."
