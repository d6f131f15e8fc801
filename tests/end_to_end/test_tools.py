# SPDX-License-Identifier: Apache-2.0
"""The command lines in tools/: their help, and mistakes that end in one line."""

import re
import runpy
import sys

import pytest
import torch

from tests.end_to_end.commands import run_tool
from tests.fixtures import CONFIG, ROOT
from tests.helpers import EXPORTS
from tests.verbs.reparameterize.test_reparameterize_models import save_random

TOOLS = {p.relative_to(ROOT / "tools").as_posix(): p.read_text() for p in sorted((ROOT / "tools").rglob("*.py"))}
BENCHMARK = (
    "--arch",
    "--img-size",
    "--device",
    "--threads",
    "--tf32",
    "--channels-last",
    "--repeats",
    "--json",
    "--plot",
)
CONVERTER = ("checkpoint", "out", "--ema", "--allow-unsafe", "--overwrite")
OPTIONS = {
    "train.py": ("--work-dir", "--resume", "--amp", "--auto-scale-lr", "--cfg-options", "--launcher", "--progress"),
    "test.py": ("--work-dir", "--out", "--deploy", "--tta", "--dtype", "--cfg-options", "--launcher", "--progress"),
    "infer.py": ("config", "checkpoint", "image_or_folder", "--out", "--device", "--score", "--overwrite"),
    "reparameterize.py": (
        *("config", "checkpoint", "out", "--overwrite", "--check", "--verify-on", "--tolerance", "--ema", "--dtype"),
        *("--keep-training-state", "--allow-unsafe"),
    ),
    "model_converters/official_to_mmrepmlp.py": CONVERTER,
    "model_converters/mmrepmlp_to_official.py": CONVERTER,
    "model_converters/publish_model.py": ("config", "checkpoint", "out", "--report", "--ema", "--overwrite"),
    "deployment/export_onnx.py": (
        *("config", "checkpoint", "out", "--size", "--batch", "--dynamic", "--opset", "--part", "--no-deploy"),
        *("--backbone-only", "--ema", "--tolerance", "--overwrite"),
    ),
    "deployment/deploy.py": (
        *("config", "checkpoint", "out_dir", "--runtime", "--precision", "--size", "--dynamic", "--batch", "--part"),
        *("--logits", "--images", "--max-drop", "--verify-on", "--ema", "--work-dir", "--cfg-options", "--overwrite"),
    ),
    "deployment/evaluate.py": ("config", "out_dir", "--work-dir", "--cfg-options"),
    "dataset_converters/digits.py": ("--task", "--out", "--overwrite"),
    "analysis_tools/benchmark.py": ("compare", "runtimes"),
    "analysis_tools/benchmark.py compare": (*BENCHMARK, "--dtype", "--autocast", "--batches", "--training-step"),
    "analysis_tools/benchmark.py runtimes": (*BENCHMARK, "--config", "--size", "--batches", "--runtimes"),
    "analysis_tools/visualize_fc3.py": ("config", "checkpoint", "out", "--channel-set", "--pixel"),
    "analysis_tools/draw_predictions.py": ("config", "checkpoints", "out", "--images", "--score"),
    "analysis_tools/compare_forms.py": ("--configs", "--checkpoints", "--predictions", "--device"),
    "analysis_tools/accuracy_table.py": ("folders",),
    "analysis_tools/compare_deployments.py": ("config", "folders", "--work-dir", "--cfg-options"),
}
# How a tool is called that does not take config, checkpoint and out in this order.
ARGUMENTS = {
    "train.py": "{config} --work-dir {folder}/run --resume {checkpoint}",
    "test.py": "{config} {checkpoint} --work-dir {folder}/run",
    "infer.py": "{config} {checkpoint} docs/images --out {folder}",
    "model_converters/official_to_mmrepmlp.py": "{checkpoint} {out}",
    "model_converters/mmrepmlp_to_official.py": "{checkpoint} {out}",
    "deployment/deploy.py": "{config} {checkpoint} {out} --work-dir {folder}/run",
    "deployment/evaluate.py": "{config} {checkpoint} --work-dir {folder}/run",
    "dataset_converters/digits.py": "--out {out}",
    "analysis_tools/accuracy_table.py": "{checkpoint}",
    "analysis_tools/benchmark.py": "runtimes --config {config} --size 64 64 --runtimes eager",
    "analysis_tools/compare_deployments.py": "{config} {checkpoint} --work-dir {folder}/run",
    "analysis_tools/compare_forms.py": (
        "--configs {config} {config} --checkpoints {checkpoint} {checkpoint} "
        "--predictions {folder}/before.pkl {folder}/after.pkl"
    ),
}


def tools_with(pattern: str) -> list[str]:
    """The tools that name an argument, and that this torch is new enough for."""
    found = [tool for tool, text in TOOLS.items() if re.search(f'"({pattern})"', text)]
    return [
        tool for tool in found if EXPORTS or not re.match("deployment/|.*(deployments|accuracy_table|benchmark)", tool)
    ]


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a tool in this process, and return what it ends with: an exit code, or the line that it prints on stderr."""

    def call(tool: str, *more: str, config: object = CONFIG, checkpoint: object = "none.pth") -> int | str:
        values = dict(config=config, checkpoint=checkpoint, out=tmp_path / "out.pth", folder=tmp_path)
        arguments = ARGUMENTS.get(tool, "{config} {checkpoint} {out}").format(**values).split()
        monkeypatch.setattr(sys, "argv", [tool, *arguments, *more])
        try:
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return call


def assert_one_line(error: int | str, message: str) -> None:
    """A text is what Python prints on stderr before it exits with 1."""
    assert isinstance(error, str) and error.startswith("error: ") and "\n" not in error
    assert re.search(message, error), error


@pytest.mark.slow
def test_help_names_the_options():
    for tool in sorted({*TOOLS, *OPTIONS}):
        done = run_tool(tool, "--help")
        assert done.returncode == 0 and not done.stderr, (tool, done.stderr)
        assert all(option in done.stdout for option in ("usage:", *OPTIONS.get(tool, ()))), (tool, done.stdout)


@pytest.mark.slow
def test_a_mistake_ends_in_one_sentence(config, tmp_path):
    (tmp_path / "empty.pth").touch()
    out = tmp_path / "deploy.pth"
    empty, again = tmp_path / "empty.pth", f"error: {tmp_path}/empty.pth is empty. Copy or download it again.\n"
    converted = run_tool("reparameterize.py", CONFIG, empty, out)
    renamed = run_tool("model_converters/mmrepmlp_to_official.py", empty, out)
    trained = run_tool("train.py", config, "--work-dir", tmp_path / "run", "--resume", empty)
    written = run_tool("dataset_converters/digits.py", "--out", tmp_path)
    assert converted.returncode == 1 and not out.exists()
    assert converted.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in converted.stderr
    assert renamed.returncode == 1 and renamed.stderr == again
    assert trained.returncode == 1 and trained.stderr == again
    assert written.returncode == 1 and written.stderr.startswith(f"error: {tmp_path} already exists")


@pytest.mark.parametrize("tool", tools_with("(--)?configs?"))
@pytest.mark.parametrize(
    "config, message",
    [
        ("none.py", "No such file or directory: .*none.py"),
        ("mmnone::folder/none.py", "mmnone::folder/none.py names no config of an installed package"),
        (ROOT / "configs/_base_/datasets/digits.py", "digits.py has no model. Name a whole config"),
    ],
    ids=["file", "package", "part"],
)
def test_a_config_that_is_not_there(call, tool, config, message):
    assert_one_line(call(tool, config=config), message)


@pytest.mark.parametrize("tool", tools_with("checkpoint|(--)?checkpoints|--resume|out_dir|folders"))
def test_an_empty_checkpoint(call, tool, config, tmp_path):
    empty = tmp_path / "empty.pth"
    empty.touch()
    assert_one_line(
        call(tool, config=config, checkpoint=empty), rf"{empty} is (empty\. Copy or download|not a deployed network)"
    )


@pytest.mark.parametrize("tool", tools_with("--overwrite"))
def test_what_exists_stays(call, tool, tmp_path):
    checkpoint, existing = (
        tmp_path / "random.pth",
        [tmp_path / name for name in ("out.pth", "out.py", "predictions.json")],
    )
    save_random(CONFIG, checkpoint)
    if tool == "model_converters/publish_model.py":  # it names its files after what is in them
        assert call(tool, checkpoint=checkpoint) == 0
        existing = sorted(tmp_path.glob("out-*"))
    for path in existing:
        path.write_text("precious")
    assert_one_line(call(tool, checkpoint=checkpoint), r"already exists; choose another path or pass overwrite")
    assert all(path.read_text() == "precious" for path in existing)


def test_mixed_precision_without_a_gpu(call, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_one_line(call("train.py", "--amp", config=config), "--amp .* needs a GPU")


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_a_head_that_does_not_fit(call, tool, config):
    error = call(tool, "--cfg-options", "model.head.in_channels=100", config=config)
    assert_one_line(
        error, r"model\.head\.in_channels=100 does not fit the backbone.*Set model\.head\.in_channels=192\."
    )


@pytest.mark.parametrize("tool", tools_with("--cfg-options"))
def test_settings_without_a_value(call, tool, capfd):
    assert call(tool, "--cfg-options", "model.head.in_channels") == 2
    assert capfd.readouterr().err.endswith("--cfg-options: expected KEY=VALUE, not 'model.head.in_channels'\n")
    assert call(tool, "--cfg-options", "custom_hooks=[dict(type='EMAHook',begin=1)]") == 2
    assert "a value cannot be read; expected numbers, words, and lists" in capfd.readouterr().err


@pytest.mark.parametrize(
    "command, option",
    [
        ("compare", "--sizes=64"),
        ("compare", "--runtimes=eager"),
        ("runtimes", "--dtype=bfloat16"),
    ],
)
def test_a_benchmark_refuses_options_of_another(monkeypatch, capfd, command, option):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", command, option])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools/analysis_tools/benchmark.py"), run_name="__main__")
    assert end.value.code == 2 and capfd.readouterr().err.endswith(f"unrecognized arguments: {option}\n")
