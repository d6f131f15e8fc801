# SPDX-License-Identifier: Apache-2.0
import argparse
import collections
import datetime
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleLR, OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from mmrepmlp.checkpoint import CheckpointError, load_from_local
from mmrepmlp.checkpoint.plain_data import PLAIN, TRUSTED

RECONSTRUCT, SCALAR = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]

NOW = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
VALUES = [
    np.array(["cat", "dog"])[0],
    np.array(["cat", "dog"], dtype=object),
    np.array([{"a": np.array([1])}, None, ["x"]], dtype=object),
    np.bool_(True),
    np.complex64(1j),
    np.bytes_(b"ab"),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([], dtype="U1"),
    NOW,
    NOW.date(),
    NOW.timetz(),
    NOW.tzinfo,
    datetime.timedelta(days=1, microseconds=2),
    pathlib.Path("a/b"),
    pathlib.PurePosixPath("a"),
    pathlib.PureWindowsPath("c:\\a"),
    {1, "a"},
    frozenset({1}),
    collections.OrderedDict(b=1, a=2),
    collections.Counter("aab"),
    ConfigDict(a=dict(b=[1, 2])),
    argparse.Namespace(lr=0.1),
    torch.Size([1, 2]),
    torch.float16,
    torch.device("cpu"),
    np.dtype(">f2"),
    {np.dtype("u1"), "a"},
    float,
    np.array([np.arange(2), np.arange(3)], dtype=object),
    np.array([[1, "a"], [None, [2]]], dtype=object, order="F"),
    np.array({"a": np.arange(2)}, dtype=object),
    OneCycleParamScheduler._annealing_cos,
]


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        for a, e in zip(actual.ravel(), expected.ravel()):
            assert_same(a, e)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
    else:
        assert actual == expected


def load_back(value, path, zipped=True):
    torch.save({"state_dict": {}, "meta": {"value": value}}, path, _use_new_zipfile_serialization=zipped)
    return load_from_local(path)["meta"]["value"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_data_come_back_as_they_were(tmp_path, value, zipped):
    assert_same(load_back(value, tmp_path / "x.pth", zipped), value)
    assert_same(load_back([value, (value, {"key": value})], tmp_path / "x.pth", zipped)[1][1]["key"], value)
    assert CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth"))["meta"]


@given(hnp.arrays(st.sampled_from(["U3", "S2", "f2", "c16", "?", ">i8", "u1"]), hnp.array_shapes()))
def test_arrays_of_any_kind_come_back(tmp_path_factory, value):
    loaded = load_back(value, tmp_path_factory.mktemp("arrays") / "x.pth")
    value = pickle.loads(pickle.dumps(value, 2))  # makes the order of bytes the machine's
    assert type(loaded) is np.ndarray and loaded.dtype == value.dtype and loaded.tobytes() == value.tobytes()


def test_containers_with_defaults_come_back_as_ordinary_ones(tmp_path):
    assert load_back(collections.defaultdict(list, {1: [2]}), tmp_path / "x.pth") == {1: [2]}
    assert load_back(collections.deque([1, 2], maxlen=3), tmp_path / "x.pth") == [1, 2]


def test_arrays_inside_of_objects_and_cycles(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    loop = {"history": history, "array": np.arange(3)}
    loop["self"] = loop
    loaded = load_back(loop, tmp_path / "x.pth")
    assert loaded["self"] is loaded and type(loaded["array"]) is np.ndarray
    assert type(loaded["history"].data[0]) is np.ndarray and loaded["history"].mean() == 1.5


def test_the_list_of_torch_is_left_as_it_was(tmp_path):
    before = set(map(str, torch.serialization.get_safe_globals()))
    load_back(NOW, tmp_path / "x.pth")
    assert set(map(str, torch.serialization.get_safe_globals())) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pth", weights_only=True)


class Crafted:
    """Pickles as a call with arguments, and the state of what it returns."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


# What numpy itself would write, but with flags that say that bytes are no pointers (0), or that numbers are (63).
OBJECT = Crafted(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
NUMBER = Crafted(np.dtype, ("i8", False, True), (3, "<", None, None, None, -1, -1, 63))
STRUCTURED = np.dtype([("a", "i4")])
# Attributes by which numpy takes a number for the address of an array.
ADDRESS = {"__array_interface__": {"data": (8, False), "shape": (1,), "typestr": "|O", "version": 3}}


def like_a_data_type(dtype):
    """An object with the attributes of a data type."""
    return argparse.Namespace(kind="f", str=dtype, dtype=dtype, hasobject=False)


def with_attribute(value, attributes):
    vars(value).update(attributes)
    return value


@pytest.mark.parametrize(
    "value",
    [
        Crafted(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), OBJECT, False, b"\x08" * 8)),
        Crafted(SCALAR, (OBJECT, b"\x08" * 8)),
        Crafted(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), NUMBER, False, [7])),
        Crafted(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), like_a_data_type(OBJECT), False, b"\x08" * 8)),
        Crafted(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (5,), np.dtype("O"), False, [1])),
        Crafted(np.ndarray, ((1,), OBJECT, bytearray(b"\x08" * 8))),
        Crafted(np.ndarray, ((10**6,),)),
        Crafted(SCALAR, (like_a_data_type(OBJECT), b"\x08" * 8)),
        Crafted(HistoryBuffer, ([1.0], [1])),
        argparse.Namespace(**ADDRESS),
        ConfigDict(ADDRESS),
        with_attribute(collections.OrderedDict(), ADDRESS),
        with_attribute(HistoryBuffer(), {"_log_history": argparse.Namespace(**ADDRESS)}),
        Crafted(bytes, (10**12,)),
        Crafted(getattr, (OneCycleParamScheduler, "__init__")),
        Crafted(OneCycleParamScheduler, ()),
        np.zeros(2, STRUCTURED),
        np.zeros(2, STRUCTURED)[0],
        np.zeros(2, "M8[s]"),
        range(3),
        slice(1, None),
        np.ma.array([1], mask=[True]),
        CheckpointError("an object of a class"),
        print,
    ],
)
def test_what_is_not_plainly_data_is_refused(tmp_path, value):
    with pytest.raises(CheckpointError):
        load_back(value, tmp_path / "x.pth")


def test_refusals_name_what_they_refuse(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds more than tensors: numpy's data type V4.*--allow-unsafe"):
        load_back(np.zeros(2, STRUCTURED), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth holds more than tensors: .*print.*--allow-unsafe"):
        load_back(print, tmp_path / "x.pth")


def test_a_history_does_not_bring_methods_along(tmp_path, monkeypatch):
    crafted = {"mean": str, "statistics_methods": {"mean": str}}
    monkeypatch.setattr(HistoryBuffer, "__getstate__", lambda self: {**vars(self), **crafted})
    methods = dict(HistoryBuffer._statistics_methods)
    loaded = load_back(HistoryBuffer([1.0], [1], max_length=3), tmp_path / "x.pth")
    assert type(loaded) is HistoryBuffer and loaded.max_length == 3
    assert loaded.mean() == loaded.statistics("mean") == 1 and HistoryBuffer._statistics_methods == methods


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_a_schedule_of_one_cycle_goes_on(tmp_path, strategy):
    def schedule():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1, momentum=0.9)
        return OneCycleLR(optimizer, eta_max=1.0, total_steps=9, anneal_strategy=strategy)

    expected, resumed = schedule(), schedule()
    state = load_back(expected.state_dict(), tmp_path / "x.pth")
    resumed.load_state_dict(state)
    for _ in range(8):
        for scheduler in (expected, resumed):
            scheduler.optimizer.step()
            scheduler.step()
        assert resumed.get_last_value() == expected.get_last_value()


def test_an_array_that_was_read_is_like_any_other(tmp_path):
    loaded = load_back({"arrays": [np.arange(3), np.arange(3)], "type": np.dtype("i8")}, tmp_path / "x.pth")
    loaded["arrays"][0] += 1
    assert loaded["arrays"][0].flags.owndata and loaded["arrays"][1].tolist() == [0, 1, 2]
    assert loaded["type"] is np.dtype("i8")


def test_refusals_without_a_type_name_the_reason(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors: numpy's attribute __array_interface__\. Loading"
    ):
        load_back(argparse.Namespace(**ADDRESS), tmp_path / "x.pth")


def test_paths_of_another_system_and_python(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(
            "archive/data.pkl", b"\x80\x02}X\x01\x00\x00\x00pcpathlib._local\nWindowsPath\nX\x03\x00\x00\x00c:a\x85Rs."
        )
        file.writestr("archive/version", "3")
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    assert load_from_local(tmp_path / "x.pth")["p"] == pathlib.PureWindowsPath("c:a")


def test_any_torch_finds_the_stand_ins_by_their_own_names():
    """Before torch 2.6 by module and name, since then by module and qualified name."""
    for attribute in ("__name__", "__qualname__"):
        assert [f"{entry.__module__}.{getattr(entry, attribute)}" for entry in TRUSTED] == list(PLAIN)
