# SPDX-License-Identifier: Apache-2.0
"""Unpickle what is plainly data beside tensors: numbers, text, dates, paths, containers and numpy arrays of these.

torch's safe unpickler creates objects of listed types only. Numpy needs more care: the pickled description of a data
type holds flags that numpy trusts, and wrong ones make it take bytes for pointers. The stand-ins here build the data
type anew from its name.
"""

import argparse
import contextlib
import datetime
import decimal
import fractions
import pathlib
import pickle
import types
import uuid
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor

SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.empty(0).__reduce__()[0]
KINDS = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?USOMm"


class PlainArray(np.ndarray):
    """A numpy array while it is read; :func:`to_plain` makes it an ordinary one."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, content = state
        super().__setstate__((version, shape, plain_dtype(dtype), is_fortran, content))


def plain_dtype(dtype: np.dtype) -> np.dtype:
    """Build a data type anew from its name.

    Raises:
        pickle.UnpicklingError: It is structured: offsets of fields would have to be trusted.
    """
    if dtype.kind == "V":
        raise pickle.UnpicklingError(f"WeightsUnpickler error: numpy's structured data type {dtype} is not read")
    return np.dtype(dtype.str)


def plain_array(kind: type, shape: tuple, code: bytes) -> PlainArray:
    """Stand-in of numpy's function that creates the array to fill."""
    return RECONSTRUCT(PlainArray, shape, code)


def plain_scalar(dtype: np.dtype, content: bytes) -> np.generic:
    """Stand-in of numpy's function that creates a scalar from bytes."""
    dtype = plain_dtype(dtype)
    if dtype.kind == "O":
        raise pickle.UnpicklingError("WeightsUnpickler error: numpy's scalar of a Python object is not read")
    return SCALAR(dtype, content)


def path_type(name: str) -> type:
    """The class of pathlib with a name; of another system's, the one that only handles names."""
    own = type(pathlib.Path())
    kind = getattr(pathlib, name)
    return kind if kind is own or name.startswith("Pure") else getattr(pathlib, f"Pure{name}")


PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
PLAIN = {
    **{f"datetime.{t.__name__}": t for t in (datetime.datetime, datetime.date, datetime.time)},
    **{f"datetime.{t.__name__}": t for t in (datetime.timedelta, datetime.timezone)},
    # Python 3.13 moved them.
    **{f"{module}.{name}": path_type(name) for name in PATHS for module in ("pathlib", "pathlib._local")},
    **{f"builtins.{t.__name__}": t for t in (set, frozenset, range, slice, list, dict, tuple)},
    **{f"builtins.{t.__name__}": t for t in (str, bytes, int, float, bool)},
    "builtins.Ellipsis": ...,
    # torch fills in ordinary dicts and lists only.
    "collections.defaultdict": lambda *factory: {},
    "collections.deque": lambda items=(), length=None: list(items),
    "decimal.Decimal": decimal.Decimal,
    "fractions.Fraction": fractions.Fraction,
    "uuid.UUID": uuid.UUID,
    "uuid.SafeUUID": uuid.SafeUUID,
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "mmengine.config.config.ConfigDict": ConfigDict,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": PlainArray,
    **{f"numpy.dtypes.{type(np.dtype(kind)).__name__}": type(np.dtype(kind)) for kind in KINDS},
    # numpy 2 moved its private modules; files refer to either name.
    **{f"numpy.{core}.multiarray._reconstruct": plain_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": plain_scalar for core in ("core", "_core")},
}


@contextlib.contextmanager
def trust_plain_data() -> Iterator[None]:
    """Let torch's safe unpickler read plain data, besides what it reads otherwise."""
    before = torch.serialization.get_safe_globals()
    others = [entry for entry in before if name_of(entry) not in PLAIN]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *((stand_in, name) for name, stand_in in PLAIN.items())])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def name_of(entry: object) -> str:
    """The name under which torch's safe unpickler finds an entry of its list."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def to_plain(value: object, seen: dict[int, object] | None = None) -> object:
    """Replace each :class:`PlainArray` in nested data by an ordinary array, in place where that is possible."""
    seen = {} if seen is None else seen
    if isinstance(value, (Tensor, str, bytes, int, float, type(None))):
        return value
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = value
    if isinstance(value, PlainArray):
        seen[id(value)] = plain = value.view(np.ndarray)
        if plain.dtype.hasobject:
            for index in np.ndindex(plain.shape):
                plain[index] = to_plain(plain[index], seen)
        return plain
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(to_plain(part, seen) for part in value)
    if isinstance(value, (dict, list)):
        parts = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, part in parts:
            plain = to_plain(part, seen)
            if plain is not part:
                value[key] = plain
    elif not isinstance(value, Config):
        to_plain(getattr(value, "__dict__", None), seen)
    return value
