# SPDX-License-Identifier: Apache-2.0
"""Unpickle data besides tensors in checkpoints: numbers, text, dates, paths, containers and numpy arrays of these.

torch's safe unpickler creates, fills and calls anything on its list, with the arguments in the file. Numpy and MMEngine
trust their arguments: crafted ones make them take bytes for pointers, or replace methods. The stand-ins here accept
what such objects really write, and nothing else; :func:`to_plain` replaces them by the real objects.
"""

import argparse
import codecs
import contextlib
import datetime
import math
import os
import pathlib
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor

SCALAR = np.float64(0).__reduce__()[0]


def refusal(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"WeightsUnpickler error: {what} is not read")


class PlainType:
    """Stand-in for numpy's data type, rebuilt from its name: numpy would trust the flags in its pickle."""

    def __init__(self, name: str, *_: bool) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind in "VmM":  # numpy would trust more in their pickles: offsets of fields, units of time
            raise refusal(f"numpy's data type {name}")

    def __setstate__(self, state: tuple) -> None:
        _, order, *_ = state
        self.dtype = np.dtype(self.dtype.newbyteorder(order).str)


class PlainArray:
    """Stand-in for a numpy array."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, plain, is_fortran, content = state
        if plain.dtype.hasobject and (len(content) != math.prod(shape) or min(shape, default=0) < 0):
            raise refusal(f"numpy's array of shape {shape} from {len(content)} objects")
        self.array = np.empty(0)
        self.array.__setstate__((1, shape, plain.dtype, is_fortran, content))


def plain_scalar(plain: PlainType, content: bytes) -> np.generic:
    """Create a scalar from bytes, in place of numpy's function."""
    if plain.dtype.hasobject:
        raise refusal("numpy's scalar of a Python object")
    return SCALAR(plain.dtype, content)


class PlainHistory(HistoryBuffer):
    """Stand-in for MMEngine's HistoryBuffer: its numbers, without the methods that its pickle names."""

    def __init__(self) -> None:
        pass

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = {name: state[name] for name in ("max_length", "_log_history", "_count_history")}


class PlainOneCycle:
    """Stand-in for MMEngine's class whose functions its schedulers store; it cannot be instantiated."""

    def __new__(cls, *_: object) -> None:
        raise refusal("an object of OneCycleParamScheduler")


FUNCTIONS = (
    (PlainHistory, HistoryBuffer, ("min", "max", "current", "mean")),
    (PlainOneCycle, OneCycleParamScheduler, ("_annealing_cos", "_annealing_linear")),
)


def plain_function(owner: object, name: str) -> object:
    """Return a function inside of a class, in place of ``getattr``, by which they are stored; MMEngine's only."""
    for stand_in, kind, names in FUNCTIONS:
        if owner is stand_in and name in names:
            return getattr(kind, name)
    raise refusal(f"getattr({owner!r}, {name!r})")


PATHS = {
    "PosixPath": pathlib.Path if os.name == "posix" else pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}
PLAIN = {
    **{f"datetime.{kind}": getattr(datetime, kind) for kind in ("datetime", "date", "time", "timedelta", "timezone")},
    # Python 3.13 moved them.
    **{f"{module}.{name}": kind for name, kind in PATHS.items() for module in ("pathlib", "pathlib._local")},
    # The factories of defaultdicts, for example.
    **{f"builtins.{kind.__name__}": kind for kind in (list, dict, tuple, set, frozenset, str, int, float, bool)},
    "builtins.bytes": lambda: b"",  # others are encoded text; bytes(number) would fill the memory
    "builtins.getattr": plain_function,
    "_codecs.encode": codecs.encode,
    # torch only fills ordinary dicts and lists.
    "collections.defaultdict": lambda *factory: {},
    "collections.deque": lambda items=(), length=None: list(items),
    "argparse.Namespace": argparse.Namespace,
    "mmengine.config.config.ConfigDict": ConfigDict,
    "mmengine.logging.history_buffer.HistoryBuffer": PlainHistory,
    "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler": PlainOneCycle,
    "numpy.dtype": PlainType,
    "numpy.ndarray": PlainArray,
    # numpy 2 moved its private modules; files refer to either name.
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: PlainArray() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": lambda *parts: plain_scalar(*parts) for core in ("core", "_core")},
}


def name_of(target: object) -> str:
    """Return the name under which torch's safe unpickler finds an entry of its list."""
    return target[1] if isinstance(target, tuple) else f"{target.__module__}.{target.__qualname__}"


def listed(name: str, target: Callable) -> Callable:
    """Make an entry of torch's list that is found under a name; torch < 2.6 only takes objects with that name."""
    if name_of(target) == name:
        return target
    entry = target if target.__module__ == __name__ else lambda *arguments: target(*arguments)
    entry.__module__, _, entry.__name__ = name.rpartition(".")
    entry.__qualname__ = entry.__name__
    return entry


TRUSTED = [listed(name, target) for name, target in PLAIN.items()]


@contextlib.contextmanager
def trust_plain_data() -> Iterator[None]:
    """Let torch's safe unpickler read plain data, besides what it reads otherwise."""
    before = torch.serialization.get_safe_globals()
    others = [entry for entry in before if name_of(entry) not in PLAIN]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *TRUSTED])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def to_plain(value: object, seen: dict[int, tuple[object, object]] | None = None) -> object:
    """Replace each stand-in in nested data by the real object, in place where that is possible; reject attributes by
    which numpy would take numbers for addresses."""
    seen = {} if seen is None else seen
    if isinstance(value, (Tensor, str, bytes, int, float, type(None))):
        return value
    if isinstance(value, PlainType):
        return value.dtype
    if id(value) in seen:
        return seen[id(value)][1]
    plain = value.array if isinstance(value, PlainArray) else value
    seen[id(value)] = value, plain  # the value too: while it is alive, no other object has its id
    if type(value) in (tuple, set, frozenset):
        seen[id(value)] = value, type(value)(to_plain(part, seen) for part in value)
        return seen[id(value)][1]
    if isinstance(plain, np.ndarray):
        if plain.dtype.hasobject:
            replace_parts(plain.ravel("K"), range(plain.size), seen)
    elif isinstance(value, (dict, list)):
        replace_parts(value, list(value) if isinstance(value, dict) else range(len(value)), seen)
    attributes = getattr(value, "__dict__", {}) if plain is value else {}
    for name in (*attributes, *(value if isinstance(value, ConfigDict) else ())):
        if str(name).startswith("__") and "array" in str(name):
            raise refusal(f"numpy's attribute {name}")
    if type(attributes) is dict:
        replace_parts(attributes, list(attributes), seen)
    if isinstance(value, PlainHistory):
        value.__class__ = HistoryBuffer
    return plain


def replace_parts(parts: dict | list | np.ndarray, keys: list | range, seen: dict[int, tuple[object, object]]) -> None:
    """Call :func:`to_plain` for the parts of a container, and set those that it replaces."""
    for key in keys:
        part = parts[key]
        plain = to_plain(part, seen)
        if plain is not part:
            parts[key] = plain
