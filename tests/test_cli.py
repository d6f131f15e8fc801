# SPDX-License-Identifier: Apache-2.0
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from mmrepmlp import apis, is_command
from mmrepmlp.cli import VERBS, Parser, main, parse_and_run
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
        ("hooks=[dict(type='A',b=1)]", "cannot parse a value; expected numbers, words, or lists"),
    ],
)
@pytest.mark.parametrize("verb", [*VERBS, None])
def test_settings_without_a_value(verb, text, message, capfd):
    names = dict(benchmark=[], train=["c"], test=["c"], infer=["c", "k", "i", "--out", "o"])
    with pytest.raises(SystemExit) as end:
        if verb:
            main([verb, *names.get(verb, ["c", "k", "o"]), "--cfg-options", text])
        else:
            given("--cfg-options", text)
    name, error = f"mmrepmlp {verb}" if verb else "tool", capfd.readouterr().err
    assert end.value.code == 2 and f"{name}: error: argument --cfg-options: {message}" in error


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


def test_ctrl_c_ends_in_one_line(capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        call(interrupt, "config.py")
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_warnings_about_pkg_resources_are_none_of_the_users():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given()
        warnings.warn("pkg_resources is deprecated as an API. See https://...", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["another"]


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
        assert f"argument --batch: expected a positive integer, not '{text}'" in capsys.readouterr().err


@needs_export
def test_every_operation_is_importable_by_name():
    assert {"train", "evaluate", "deploy_checkpoint", "reparameterize_checkpoint", "write_dataset"} <= set(apis.__all__)
    assert all(callable(getattr(apis, name)) for name in apis.__all__) and set(apis.__all__) <= set(dir(apis))
    with pytest.raises(AttributeError, match="no attribute 'test'"):
        apis.test  # noqa: B018
