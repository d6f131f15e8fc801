# SPDX-License-Identifier: Apache-2.0
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from mmrepmlp import apis, is_command
from mmrepmlp.checkpoint import CheckpointError, check_overwrite
from mmrepmlp.cli import VERBS, Parser, main, parse_and_run
from mmrepmlp.models import RepMLPNet
from mmrepmlp.registry import MODELS
from tests.helpers import needs_export

ROOT = Path(__file__).parents[1]


def call(operation, *arguments):
    parser = Parser("tool")
    parser.add_all("config", "--overwrite", "--launcher", "--local-rank", "--cfg-options", "--traceback")
    parser.add("--tolerance", type=float)
    parser.set_defaults(run=operation)
    parse_and_run(parser, arguments)


def given(*arguments) -> dict:
    """What a function is called with."""
    found = {}
    call(lambda **given: found.update(given), "config.py", *arguments)
    return found


def test_options_that_are_not_given_are_not_passed_on():
    assert given() == dict(config="config.py")
    assert given("--overwrite", "--tolerance", "0.1") == dict(config="config.py", overwrite=True, tolerance=0.1)


@pytest.mark.parametrize("spelling", ["--local-rank", "--local_rank"])
def test_the_local_rank_becomes_a_variable(monkeypatch, spelling):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert given(f"{spelling}=3") == dict(config="config.py")
    assert os.environ["LOCAL_RANK"] == "3"


def test_settings_are_read_as_by_mmengine():
    options = given("--cfg-options", "a.b=[(1,2),c]", "c=1e-3", "--cfg-options", "d=None", "e='x=y'")["cfg_options"]
    assert options == {"a.b": [(1, 2), "c"], "c": 1e-3, "d": None, "e": "x=y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.head", "expected KEY=VALUE, not 'model.head'"),
        ("hooks=[dict(type='A',b=1)]", "a value cannot be read; expected numbers, words, and lists"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_settings_without_a_value(verb, text, message, capfd):
    names = dict(benchmark=[], train=["c"], test=["c"], infer=["c", "k", "i", "--out", "o"])
    with pytest.raises(SystemExit) as end:
        main([verb, *names.get(verb, ["c", "k", "o"]), "--cfg-options", text])
    error = capfd.readouterr().err
    assert end.value.code == 2 and f"mmrepmlp {verb}: error: argument --cfg-options: {message}" in error


def run_python(*command: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)], ids=lambda words: "".join(words) or "command")
def test_help_answers_at_once(words):
    times = []
    for _ in range(5):
        began = time.monotonic()
        done = run_python("-X", "importtime", "-m", "mmrepmlp", *words, "--help")
        times.append(time.monotonic() - began)
    imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.M)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {' '.join(['mmrepmlp', *words])} ")
    assert "mmrepmlp.cli" in imported and not {"torch", "mmengine", "numpy", "rich"} & set(imported)
    assert min(times) < 0.5
    assert words or all(f"\n    {verb} " in done.stdout or f"\n    {verb}\n" in done.stdout for verb in VERBS)


SCRIPTS = os.path.dirname(sys.executable)


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["-m", "train"], ["python", "-m", "mmrepmlp", "train"], True),
        (["-m"], ["python", "-W", "ignore", "-um", "mmrepmlp"], True),
        ([f"{SCRIPTS}/mmrepmlp", "train"], ["python", f"{SCRIPTS}/mmrepmlp", "train"], True),
        (["-m", "-m", "mmrepmlp"], ["python", "-m", "other", "-m", "mmrepmlp"], False),
        (["-m"], ["python", "-m", "mmrepmlp.cli"], False),
        (["-c", "-m", "mmrepmlp"], ["python", "-c", "pass", "-m", "mmrepmlp"], False),
        (["train.py", "-m", "mmrepmlp"], ["python", "train.py", "-m", "mmrepmlp"], False),
        (["/home/me/mmrepmlp"], ["python", "/home/me/mmrepmlp"], False),
        (["mmrepmlp"], ["python", "mmrepmlp"], False),
        ([""], ["python"], False),
    ],
)
def test_the_command_is_recognized_and_nothing_else(argv, orig_argv, expected):
    assert is_command(argv, orig_argv) is expected


def test_what_only_looks_like_the_command_gets_all_effects(tmp_path):
    """Else a script of somebody's own would load checkpoints as MMEngine does."""
    (tmp_path / "mmrepmlp").write_text("import sys, mmrepmlp; print('mmrepmlp.mmengine_compat' in sys.modules)")
    done = run_python(tmp_path / "mmrepmlp", "-m", "mmrepmlp", "train", cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_the_command_itself_has_them_when_a_verb_begins(tmp_path):
    (tmp_path / "config.py").write_text("import sys\nassert 'mmrepmlp.mmengine_compat' in sys.modules")
    done = run_python("-m", "mmrepmlp", "train", tmp_path / "config.py")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path}/config.py has no model.")
    quick = "import sys; sys.argv[0], sys.orig_argv[:] = '-m', ['python', '-m', 'mmrepmlp']; import mmrepmlp as m; "
    quick += "loaded = set(sys.modules); print('torch' in loaded, m.registry.MODELS.scope, m.switch_to_deploy.__name__)"
    assert run_python("-c", quick).stdout == "False mmrepmlp switch_to_deploy\n"


def test_the_traceback_of_an_expected_error_is_shown_on_request(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["train", str(tmp_path / "none.py"), "--traceback"])


@pytest.mark.parametrize(("verb", "operation"), dict(train="train", test="evaluate", infer="infer").items())
def test_verbs_call_the_functions_of_the_api(verb, operation, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(apis, operation, lambda **given: called.append(given) or "done", raising=False)
    main([verb, "c.py", "k.pth", "images", "--out", "o"][: dict(train=2, test=3).get(verb)])
    assert called[0]["config"] == "c.py" and capsys.readouterr().out == ("done\n" if verb == "infer" else "")


class Report:
    """What the other verbs return."""

    def table(self) -> str:
        return "a table"

    def save_json(self, path: str) -> None:
        Path(path).write_text("{}")


@pytest.mark.parametrize(
    ("words", "operation"),
    [
        ("reparameterize c.py k.pth o.pth --names official", "reparameterize_checkpoint"),
        ("deploy c.py k.pth o --size 64 96 --raw", "deploy_checkpoint"),
        ("benchmark c.py folder --batches 1 8 --json {json}", "benchmark"),
    ],
)
def test_reports_are_printed(words, operation, monkeypatch, capsys, tmp_path):
    called = []
    monkeypatch.setattr(apis, operation, lambda **given: called.append(given) or Report(), raising=False)
    main(words.format(json=tmp_path / "file.json").split())
    assert capsys.readouterr().out == "a table\n"
    assert (tmp_path / "file.json").exists() == (operation == "benchmark") and "json" not in called[0]


def test_numbers_are_counted_from_1(capsys):
    for text in ("0", "-1", "1.5", "x"):
        with pytest.raises(SystemExit):
            main(["infer", "c.py", "k.pth", "i", "--out", "o", f"--batch={text}"])
        assert f"argument --batch: expected a number from 1 up, not '{text}'" in capsys.readouterr().err


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
def test_expected_errors_are_one_sentence(operation, message):
    with pytest.raises(SystemExit) as caught:
        call(operation, "config.py")
    assert str(caught.value).startswith("error: ") and message in str(caught.value)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), RuntimeError("a kernel failed"), ValueError("of somebody else")]
)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught:
        call(lambda config: raise_(error), "config.py")
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
def test_types_and_arguments_that_do_not_exist_are_named(settings, message):
    with pytest.raises(SystemExit, match=message):
        call(lambda config: MODELS.build(settings), "config.py")


@MODELS.register_module()
class Faulty:
    """A constructor with an error of its own, which no change of the config mends."""

    def __init__(self, kind):
        if kind == "key":
            {}["type"]
        dict.fromkeys(wrong=1)


@pytest.mark.parametrize("kind, error", [("key", KeyError), ("argument", TypeError)])
def test_errors_inside_of_a_constructor_keep_their_traceback(kind, error):
    with pytest.raises(error):
        call(lambda config: MODELS.build(dict(type="Faulty", kind=kind)), "config.py")


def test_an_error_in_the_handling_of_an_expected_one_keeps_its_traceback():
    def operation(config):
        try:
            Path("/nowhere/at/all").read_text()
        except OSError:
            1 / 0  # noqa: B018

    with pytest.raises(ZeroDivisionError):
        call(operation, "config.py")


@needs_export
def test_every_operation_is_importable_by_name():
    assert {"train", "evaluate", "deploy_checkpoint", "reparameterize_checkpoint", "write_dataset"} <= set(apis.__all__)
    assert all(callable(getattr(apis, name)) for name in apis.__all__) and set(apis.__all__) <= set(dir(apis))
    with pytest.raises(AttributeError, match="no attribute 'test'"):
        apis.test  # noqa: B018
