# SPDX-License-Identifier: Apache-2.0
"""The verbs and the scripts in tools/: their help, and mistakes that end in one line."""

import importlib.util
import re

import pytest
import torch

from mmrepmlp.cli import VERBS, main, make_parser, parse_and_run
from tests.end_to_end.commands import run_tool
from tests.fixtures import CONFIG, ROOT
from tests.helpers import EXPORTS
from tests.verbs.reparameterize.test_reparameterize_models import save_random

OPTIONS = {
    "train": "config --work-dir --resume --amp --auto-scale-lr --cfg-options --launcher --progress",
    "test": "config checkpoint --work-dir --out --deploy --tta --dtype --show-dir --cfg-options --launcher --progress",
    "infer": "config checkpoint images --out --device --score --batch --cfg-options --overwrite",
    "reparameterize": "config checkpoint out --overwrite --check --verify-on --tolerance --ema --dtype --names "
    "--keep-training-state --allow-unsafe --cfg-options",
    "deploy": "config checkpoint OUT --runtime --precision --size --dynamic --batch --part --logits --images "
    "--max-drop --verify-on --ema --raw --opset --work-dir --cfg-options --allow-unsafe --overwrite",
    "benchmark": "TARGET --against --runtimes --arch --img-size --size --batches --dtype --autocast --training-step "
    "--device --threads --tf32 --channels-last --repeats --json --work-dir --cfg-options",
    "dataset_converters/digits.py": "--task --out --overwrite",
    "visualize_fc3.py": "config checkpoint out --channel-set --pixel --cfg-options",
}
SCRIPTS = [name for name in OPTIONS if name.endswith(".py")]
# How a command is called that does not take config, checkpoint and out in this order.
ARGUMENTS = {
    "train": "{config} --work-dir {folder}/run --resume {checkpoint}",
    "test": "{config} {checkpoint} --work-dir {folder}/run",
    "infer": "{config} {checkpoint} {images} --out {folder}",
    "deploy": "{config} {checkpoint} {out} --work-dir {folder}/run",
    "benchmark": "{config} --size 64 64 --runtimes eager",
    "dataset_converters/digits.py": "--out {out}",
}


def parser_of(script: str):
    """The parser of a script in tools/ that is no verb."""
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser()


def commands_with(argument: str) -> list[str]:
    """The commands that take an argument, and that this torch is new enough for."""
    found = [command for command, options in OPTIONS.items() if argument in options.split()]
    return [command for command in found if EXPORTS or command not in ("deploy", "benchmark")]


@pytest.fixture
def call(tmp_path):
    """Run a command in this process, and return what it ends with: an exit code, or the line it prints on stderr."""

    def call(command: str, *more: str, config: object = CONFIG, checkpoint: object = "none.pth") -> int | str:
        values = dict(config=config, checkpoint=checkpoint, out=tmp_path / "out.pth", folder=tmp_path)
        line = ARGUMENTS.get(command, "{config} {checkpoint} {out}")
        arguments = [*line.format(**values, images=ROOT / "docs/images").split(), *more]
        try:
            if command in VERBS:
                main([command, *arguments])
            else:
                parse_and_run(parser_of(command), arguments)
        except SystemExit as end:
            return end.code
        return 0

    return call


def assert_one_line(error: int | str, message: str) -> None:
    """A text is what Python prints on stderr before it exits with 1."""
    assert isinstance(error, str) and error.startswith("error: ") and "\n" not in error
    assert re.search(message, error), error


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_the_options(command, call, capsys):
    assert call(command, "--help") == 0
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert {"usage", "--traceback", *OPTIONS[command].split()} <= words


def test_an_argument_means_the_same_everywhere():
    """What is in the table of all is in it once, and what only one verb takes is no other verb's under another name."""
    actions = {}
    for verb in make_parser()._subparsers._group_actions[0].choices.values():
        for action in verb._actions:
            actions.setdefault(action.dest, []).append((action.type, action.nargs, type(action)))
    different = {name for name, kinds in actions.items() if len(set(kinds)) > 1}
    assert different == {"checkpoint", "images"}  # optional in test; infer's are what it predicts


@pytest.mark.slow
@pytest.mark.parametrize("script", [*(f"{verb}.py" for verb in VERBS), *SCRIPTS])
def test_scripts_call_the_verbs(script):
    done = run_tool(script, "--help")
    usage = f"usage: mmrepmlp {script[:-3]} " if script not in SCRIPTS else f"usage: {script.rpartition('/')[2]} "
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith(usage), done.stderr


@pytest.mark.slow
def test_a_mistake_ends_in_one_sentence(config, tmp_path):
    empty, again = tmp_path / "empty.pth", f"error: {tmp_path}/empty.pth is empty. Copy or download it again.\n"
    empty.touch()
    out = tmp_path / "deploy.pth"
    converted = run_tool("reparameterize.py", CONFIG, empty, out)
    trained = run_tool("train.py", config, "--work-dir", tmp_path / "run", "--resume", empty)
    written = run_tool("dataset_converters/digits.py", "--out", tmp_path)
    assert converted.returncode == 1 and not out.exists()
    assert converted.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in converted.stderr
    assert trained.returncode == 1 and trained.stderr == again
    assert written.returncode == 1 and written.stderr.startswith(f"error: {tmp_path} already exists")


@pytest.mark.parametrize("command", [*commands_with("config"), *commands_with("TARGET")])
@pytest.mark.parametrize(
    "config, message",
    [
        ("none.py", "none.py"),
        ("mmnone::folder/none.py", "mmnone::folder/none.py does not name a config of an installed package"),
        (ROOT / "configs/_base_/datasets/digits.py", "digits.py has no model. Pass a complete config"),
    ],
    ids=["file", "package", "part"],
)
def test_a_config_that_is_not_there(call, command, config, message):
    assert_one_line(call(command, config=config), message)


@pytest.mark.parametrize("command", ["train", *commands_with("checkpoint")])
def test_an_empty_checkpoint(call, command, config, tmp_path):
    empty = tmp_path / "empty.pth"
    empty.touch()
    assert_one_line(call(command, config=config, checkpoint=empty), rf"{empty} is empty\. Copy or download")


def test_a_folder_that_is_not_a_deployed_one(call, config, tmp_path):
    assert_one_line(call("test", config=config, checkpoint=tmp_path), "is not a deployed network")
    assert_one_line(
        call("test", "--tta", config=config, checkpoint=tmp_path), "deploy, tta, dtype and launcher do not apply"
    )


@pytest.mark.parametrize("command", commands_with("--overwrite"))
def test_what_exists_stays(call, command, tmp_path):
    checkpoint = tmp_path / "random.pth"
    save_random(CONFIG, checkpoint)
    existing = [tmp_path / name for name in ("out.pth", "out.py", "predictions.jsonl")]
    for path in existing:
        path.write_text("precious")
    assert_one_line(call(command, checkpoint=checkpoint), r"already exists; choose another path or pass overwrite")
    assert all(path.read_text() == "precious" for path in existing)


def test_mixed_precision_without_a_gpu(call, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_one_line(call("train", "--amp", config=config), "--amp .* needs a GPU")


@pytest.mark.slow
def test_a_head_that_does_not_fit(config, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["train", str(config), "--work-dir", str(tmp_path), "--cfg-options", "model.head.in_channels=100"])
    assert_one_line(end.value.code, r"model\.head\.fc .*100.* Set model\.head\.in_channels=192\.")
