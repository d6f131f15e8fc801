# SPDX-License-Identifier: Apache-2.0
"""Unpickle what is plainly data beside tensors: numbers, text, dates, paths, containers and numpy arrays of these.

torch's safe unpickler creates, fills and calls what is on a list, with whatever arguments a file gives. Numpy and
MMEngine trust theirs: crafted ones make them take bytes for pointers, or replace methods. The stand-ins here accept
what such objects really write, and nothing else; :func:`to_plain` replaces them by the real ones.
"""

import argparse
import codecs
import contextlib
import datetime
import decimal
import fractions
import math
import pathlib
import pickle
import types
import uuid
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version
from torch import Tensor

SCALAR = np.float64(0).__reduce__()[0]


def refusal(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"WeightsUnpickler error: {what} is not read")


class PlainType:
    """Stand-in of numpy's data type, which is built anew from its name: numpy would trust the flags in its pickle."""

    def __init__(self, name: str, *_: bool) -> None:
        self.dtype = flat_dtype(name)

    def __setstate__(self, state: tuple) -> None:
        _, order, *_, details = state
        if self.dtype.kind in "mM":
            unit, count, *_ = details[1]
            self.dtype = flat_dtype(f"{self.dtype.kind}8[{'' if count == 1 else count}{unit.decode()}]")
        self.dtype = flat_dtype(self.dtype.newbyteorder(order).str)


def flat_dtype(name: str) -> np.dtype:
    """Build numpy's data type of a name.

    Raises:
        pickle.UnpicklingError: It is structured: offsets of fields would have to be trusted.
    """
    dtype = np.dtype(str(name))
    if dtype.kind == "V":
        raise refusal(f"numpy's structured data type {name}")
    return dtype


class PlainArray:
    """Stand-in of a numpy array."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, plain, is_fortran, content = state
        if plain.dtype.hasobject and (len(content) != math.prod(shape) or min(shape, default=0) < 0):
            raise refusal(f"numpy's array of shape {shape} from {len(content)} objects")
        self.array = np.empty(0)
        self.array.__setstate__((1, shape, plain.dtype, is_fortran, content))


def plain_scalar(plain: PlainType, content: bytes) -> np.generic:
    """Stand-in of numpy's function that creates a scalar from bytes."""
    if plain.dtype.hasobject:
        raise refusal("numpy's scalar of a Python object")
    return SCALAR(plain.dtype, content)


class PlainHistory(HistoryBuffer):
    """Stand-in of MMEngine's HistoryBuffer: its numbers, without the methods that its pickle names."""

    def __init__(self) -> None:
        pass

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = {name: state[name] for name in ("max_length", "_log_history", "_count_history")}


class PlainClass(NamedTuple):
    """Stand-in of a class that is data itself, such as what a defaultdict makes; makes empty objects only."""

    kind: type

    def __call__(self) -> object:
        return self.kind()


TAKES_NAMES = digit_version(torch.__version__) >= digit_version("2.6")  # in torch's list of what is safe
HISTORY_STATISTICS = ("min", "max", "current", "mean")
# Functions that MMEngine stores, by the stand-in of the class that they belong to.
ONE_CYCLE = f"{OneCycleParamScheduler.__module__}.{OneCycleParamScheduler.__qualname__}"
FUNCTIONS = (
    (PlainHistory, HistoryBuffer, HISTORY_STATISTICS),
    (ONE_CYCLE, OneCycleParamScheduler, ("_annealing_cos", "_annealing_linear")),
)


def plain_function(owner: object, name: str) -> object:
    """Stand-in of ``getattr``, by which functions inside of classes are stored.

    Raises:
        pickle.UnpicklingError: It is none that MMEngine stores.
    """
    for stand_in, kind, names in FUNCTIONS:
        if owner is stand_in and name in names:
            return getattr(kind, name)
    raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is refused: it may run code.")


def plain_range(*bounds: int) -> range:
    """Stand-in of ``range``; long ones would fill the memory in a set."""
    numbers = range(*bounds)
    if len(numbers) > 1_000_000:
        raise refusal(f"Python's {numbers}")
    return numbers


def plain_fraction(*parts: int | str) -> fractions.Fraction:
    """Stand-in of a fraction; the decimals that it takes besides its own text would fill the memory."""
    numbers = parts[0].split("/") if isinstance(parts[0], str) else parts
    return fractions.Fraction(*map(int, numbers))


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
    **{f"builtins.{t.__name__}": PlainClass(t) for t in (list, dict, tuple, str, bytes, int, float, bool)},
    "builtins.frozenset": frozenset,
    "builtins.slice": slice,
    "builtins.range": plain_range,
    "builtins.Ellipsis": ...,
    "builtins.getattr": plain_function,
    # Newer torch has these two by itself.
    "builtins.set": set,
    "_codecs.encode": codecs.encode,
    # torch fills in ordinary dicts and lists only.
    "collections.defaultdict": lambda *factory: {},
    "collections.deque": lambda items=(), length=None: list(items),
    "decimal.Decimal": decimal.Decimal,
    "fractions.Fraction": plain_fraction,
    "uuid.UUID": uuid.UUID,
    "uuid.SafeUUID": uuid.SafeUUID,
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "mmengine.config.config.ConfigDict": ConfigDict,
    "mmengine.logging.history_buffer.HistoryBuffer": PlainHistory,
    ONE_CYCLE: ONE_CYCLE,
    "numpy.dtype": PlainType,
    "numpy.ndarray": PlainArray,
    # numpy 2 moved its private modules; files refer to either name.
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: PlainArray() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": plain_scalar for core in ("core", "_core")},
}


@contextlib.contextmanager
def trust_plain_data() -> Iterator[None]:
    """Let torch's safe unpickler read plain data, besides what it reads otherwise."""
    before = torch.serialization.get_safe_globals()
    others = [entry for entry in before if name_of(entry) not in PLAIN]
    if not TAKES_NAMES:
        trusted = {**{name_of(entry): entry for entry in others}, **PLAIN}
        with mock.patch("torch._weights_only_unpickler._get_user_allowed_globals", lambda: trusted):
            yield
        return
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


def to_plain(value: object, seen: dict[int, tuple[object, object]] | None = None) -> object:
    """Replace each stand-in in nested data by what it stands for, in place where that is possible.

    Raises:
        pickle.UnpicklingError: An object has attributes by which numpy would take numbers for addresses.
    """
    seen = {} if seen is None else seen
    if isinstance(value, (Tensor, str, bytes, int, float, type(None))):
        return value
    if isinstance(value, PlainType):
        return value.dtype
    if isinstance(value, PlainClass):
        return value.kind
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
