# SPDX-License-Identifier: Apache-2.0
import os
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from mmrepmlp import apis
from mmrepmlp.checkpoint import CheckpointError, check_overwrite
from mmrepmlp.cli import run_tool, tool_parser
from mmrepmlp.models import RepMLPNet
from mmrepmlp.registry import MODELS
from tests.helpers import needs_export


def call(monkeypatch, operation, *arguments):
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    parser = tool_parser("A tool.", "config", "--overwrite", "--launcher", "--local-rank")
    parser.add_argument("--tolerance", type=float)
    return run_tool(parser, operation)


def test_options_that_are_not_given_are_not_passed_on(monkeypatch):
    assert call(monkeypatch, lambda **given: given, "config.py") == dict(config="config.py")
    given = call(monkeypatch, lambda **given: given, "config.py", "--overwrite", "--tolerance", "0.1")
    assert given == dict(config="config.py", overwrite=True, tolerance=0.1)


@pytest.mark.parametrize("spelling", ["--local-rank", "--local_rank"])
def test_the_local_rank_becomes_a_variable(monkeypatch, spelling):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    call(monkeypatch, lambda config: None, "config.py", f"{spelling}=3")
    assert os.environ["LOCAL_RANK"] == "3"


def raise_(error):
    raise error


@pytest.mark.parametrize(
    "operation, message",
    [
        (lambda config: raise_(CheckpointError("It is damaged.")), "It is damaged."),
        (lambda config: check_overwrite(__file__, overwrite=False), "already exists"),
        (lambda config: Path("/nowhere/at/all").read_text(), "No such file"),
        (lambda config: __import__("no_such_package"), "No module named 'no_such_package'"),
        (lambda config: urlopen("file:///nowhere"), "A download failed: [Errno 2]"),
        (lambda config: RepMLPNet("X"), "arch='X'"),
        # MMEngine's registry raises a ValueError of its own around ours.
        (lambda config: MODELS.build(dict(type="RepMLPNet", arch="X")), "arch='X'"),
    ],
)
def test_expected_errors_are_one_sentence(monkeypatch, operation, message):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, operation, "config.py")
    assert str(caught.value).startswith("error: ") and message in str(caught.value)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), RuntimeError("a kernel failed"), ValueError("of somebody else")]
)
def test_other_errors_keep_their_traceback(monkeypatch, error):
    with pytest.raises(type(error)) as caught:
        call(monkeypatch, lambda config: raise_(error), "config.py")
    assert caught.value is error


LINEAR = dict(type="mmpretrain.LinearClsHead", num_classes=2)
STACKED = dict(type="mmpretrain.StackedLinearClsHead", num_classes=2, in_channels=3, mid_channels=[4])


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(type="Nope"), "type='Nope' in the config is unknown"),
        (LINEAR, "type='mmpretrain.LinearClsHead' in the config cannot be built: .*'in_channels'"),
        # An argument that a constructor hands on to that of its base.
        (dict(**LINEAR, in_channels=3, topks=1), "type='mmpretrain.LinearClsHead' in the config .*'topks'"),
        (dict(**STACKED, norm_cfg={}), 'cannot be built: .*key "type"'),
        (dict(**STACKED, norm_cfg=dict(type="BatchNrom")), "type='BatchNrom' in the config is unknown"),
        (dict(**STACKED, norm_cfg=dict(type="BN1d", epsilon=1)), "type='BN1d' in the config .*'epsilon'"),
    ],
)
def test_types_and_arguments_that_do_not_exist_are_named(monkeypatch, settings, message):
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, lambda config: MODELS.build(settings), "config.py")


@MODELS.register_module()
class Faulty:
    """A constructor with an error of its own, which no change of the config mends."""

    def __init__(self, kind):
        if kind == "key":
            {}["type"]
        dict.fromkeys(wrong=1)


@pytest.mark.parametrize("kind, error", [("key", KeyError), ("argument", TypeError)])
def test_errors_inside_of_a_constructor_keep_their_traceback(monkeypatch, kind, error):
    with pytest.raises(error):
        call(monkeypatch, lambda config: MODELS.build(dict(type="Faulty", kind=kind)), "config.py")


def test_an_error_in_the_handling_of_an_expected_one_keeps_its_traceback(monkeypatch):
    def operation(config):
        try:
            Path("/nowhere/at/all").read_text()
        except OSError:
            1 / 0  # noqa: B018

    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, operation, "config.py")


@needs_export
def test_every_operation_is_importable_by_name():
    assert {"train", "evaluate", "deploy_checkpoint", "reparameterize_checkpoint", "write_dataset"} <= set(apis.__all__)
    assert all(callable(getattr(apis, name)) for name in apis.__all__) and set(apis.__all__) <= set(dir(apis))
    with pytest.raises(AttributeError, match="no attribute 'test'"):
        apis.test  # noqa: B018
