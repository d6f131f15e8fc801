# SPDX-License-Identifier: Apache-2.0
"""Which errors end a command with one line, and which with their traceback."""

from pathlib import Path
from urllib.request import urlopen

import pytest

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from mmrepmlp.registry import MODELS
from mmrepmlp.verbs.explain import explain


def raised(operation) -> Exception:
    with pytest.raises(Exception) as caught:
        operation()
    return caught.value


@pytest.mark.parametrize(
    "operation, message",
    [
        (lambda: Path("/nowhere/at/all").read_text(), "No such file"),
        (lambda: __import__("no_such_package"), "No module named 'no_such_package'"),
        (lambda: raise_(ModuleNotFoundError("No module", name="pkg_resources")), "pip install 'setuptools<81'"),
        (lambda: urlopen("file:///nowhere"), "A download failed: "),
        (lambda: RepMLPNet("X"), "arch='X'"),
        (lambda: MODELS.build(dict(type="RepMLPNet", arch="X")), "arch='X'"),
        (lambda: raise_(MMRepMLPError("It is damaged.")), "It is damaged."),
    ],
)
def test_expected_errors_are_one_sentence(operation, message):
    assert message in explain(raised(operation))


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), RuntimeError("a kernel failed"), ValueError("of somebody else")]
)
def test_other_errors_keep_their_traceback(error):
    assert explain(raised(lambda: raise_(error))) is None


def test_an_error_in_the_handling_of_an_expected_one_keeps_its_traceback():
    def operation():
        try:
            Path("/nowhere/at/all").read_text()
        except OSError:
            1 / 0  # noqa: B018

    assert explain(raised(operation)) is None


LINEAR = dict(type="mmpretrain.LinearClsHead", num_classes=2)
STACKED = dict(type="mmpretrain.StackedLinearClsHead", num_classes=2, in_channels=3, mid_channels=[4])


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(type="Nope"), "type='Nope' in the config is unknown"),
        (LINEAR, "cannot be built: LinearClsHead.__init__() missing 1 required positional argument: 'in_channels'"),
        (dict(**LINEAR, in_channels=3, topks=1), "'topks'"),
        (dict(**STACKED, norm_cfg={}), 'key "type"'),
        (dict(**STACKED, norm_cfg=dict(type="BatchNrom")), "type='BatchNrom' in the config is unknown"),
        (dict(**STACKED, norm_cfg=dict(type="BN1d", epsilon=1)), "'epsilon'"),
    ],
)
def test_types_and_arguments_that_do_not_exist_are_named(settings, message):
    assert message in explain(raised(lambda: MODELS.build(settings)))


@MODELS.register_module()
class Broken:
    """A constructor with an error of its own, which no change of the config mends."""

    def __init__(self, kind):
        if kind == "key":
            {}["type"]
        if kind == "pretrained":
            type(self)(kind, pretrained=None)
        dict.fromkeys(wrong=1)


@pytest.mark.parametrize("kind", ["key", "argument"])
def test_errors_inside_of_a_constructor_keep_their_traceback(kind):
    assert explain(raised(lambda: MODELS.build(dict(type="Broken", kind=kind)))) is None


def test_an_old_argument_is_told_the_new_one():
    message = explain(raised(lambda: MODELS.build(dict(type="Broken", kind="pretrained"))))
    assert "Set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)" in message
