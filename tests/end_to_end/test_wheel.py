# SPDX-License-Identifier: Apache-2.0
"""The package as others get it: a wheel in an environment that has never seen the checkout, made from the source
distribution."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IGNORED = (".*", "*.egg-info", "__pycache__")
GENERATED = {"build", "data", "dist", "work_dirs"}
LINES = ("mm", "onedl")
SDIST = "from setuptools import build_meta; build_meta.build_sdist('..')"
PROJECT = """
import sys
import mmrepmlp
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope

cfg = Config.fromfile("project.py")
assert cfg.model.head.num_classes == 7 and cfg.train_cfg.max_epochs == 100
cfg.model.data_preprocessor = cfg.data_preprocessor
with DefaultScope.overwrite_default_scope(cfg.default_scope):
    model = MODELS.build(cfg.model)
assert type(model.backbone) is mmrepmlp.models.RepMLPNet
assert get_config("mmrepmlp::upernet/upernet_repmlpnet-d256_4xb2-80k_cityscapes-512x1024.py").model.decode_head
print(mmrepmlp.__file__)
"""
VERBS = """
import sys
from mmrepmlp.cli import main

for command in sys.argv[1:]:
    main(command.split())
"""


def run(*command: object, cwd: Path) -> str:
    # Without what would find the checkout.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(build_once) -> Path:
    """A folder with the source distribution and the wheel made from it."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        return shutil.ignore_patterns(*IGNORED)(folder, names) | (GENERATED if Path(folder) == ROOT else set())

    def write(folder: Path) -> None:
        shutil.copytree(ROOT, folder / "source", ignore=ignored)
        run(sys.executable, "-c", SDIST, cwd=folder / "source")
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        run(*pip, "--wheel-dir", folder, *folder.glob("mmrepmlp-*.tar.gz"), cwd=folder)

    return build_once("wheel", write)


@pytest.fixture(scope="module")
def wheel(distributions) -> Path:
    return next(distributions.glob("mmrepmlp-*.whl"))


def files_in(*names: str) -> set[str]:
    """Files of the checkout, those in folders included, without what Python compiles."""
    found = {path for name in names for path in (ROOT / name, *(ROOT / name).rglob("*"))}
    files = {path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts}
    return {str(path) for path in files if ".mim" not in path.parts}


def test_the_source_distribution_has_what_a_clone_has(distributions):
    (source,) = distributions.glob("mmrepmlp-*.tar.gz")
    with tarfile.open(source) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    packed = ("mmrepmlp", "configs", "dev", "requirements", "tests", "tools", "Makefile", "MANIFEST.in", "setup.py")
    pages = ("docs/index.md", "docs/images", *(path.name for path in ROOT.glob("[A-Z]*.md")))
    others = ("pyproject.toml", "model-index.yml", "LICENSE", "CITATION.cff")
    assert files_in(*packed, *pages, *others) <= names
    assert not [name for name in names if name.startswith(("docs/_build", "mmrepmlp/.mim")) or name.endswith(".pyc")]


def test_the_wheel_has_the_package_configs_tools_and_index_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tools = {name for name in files_in("tools") if not name.startswith(("tools/setup_env.sh", "tools/demo/"))}
    index = {f"mmrepmlp/.mim/{name}" for name in tools | files_in("configs", "model-index.yml")}
    assert names == files_in("mmrepmlp") | index
    assert {"mmrepmlp/py.typed", "mmrepmlp/verbs/deploy/standalone/run.py"} <= names


def test_it_has_the_command(wheel):
    with zipfile.ZipFile(wheel) as files:
        (scripts,) = (name for name in files.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert files.read(scripts).decode() == "[console_scripts]\nmmrepmlp = mmrepmlp.cli:main\n"


def test_no_line_of_openmmlab_is_installed_over_the_other(wheel):
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    required = [
        Requirement(line) for line in message_from_bytes(zipfile.ZipFile(wheel).read(metadata)).get_all("Requires-Dist")
    ]

    def names(extra: str) -> set[str]:
        return {need.name for need in required if not need.marker or need.marker.evaluate({"extra": extra})}

    assert names("") == {"torch", "safetensors", "rich"}
    frameworks = dict(cls="mmpretrain", seg="mmsegmentation")
    for extra, framework in [*frameworks.items(), ("det", "mmdet")]:
        found = {name for name in names(extra) if name.startswith(LINES)}
        assert found == {"mmengine", "mmcv", framework} and "setuptools" in names(extra)
    for extra, framework in [*frameworks.items(), ("det", "mmdetection")]:
        found = {name for name in names(f"onedl-{extra}") if name.startswith(LINES)}
        assert found == {"onedl-mmengine", "onedl-mmcv", f"onedl-{framework}"}
    assert not any(name.startswith(LINES) for extra in ("export", "dev") for name in names(extra))


@pytest.fixture(scope="module")
def installed(wheel, build_once) -> Path:
    """An environment of its own with the wheel, whose other packages are those of this one."""

    def write(venv: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=ROOT)
        run(sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "-q", "--no-deps", wheel, cwd=ROOT)
        dependencies = sysconfig.get_path("purelib")
        (packages_of(venv) / "dependencies.pth").write_text(dependencies)

    return build_once("venv", write)


def packages_of(venv: Path) -> Path:
    (packages,) = venv.glob("lib/python*/site-packages")
    return packages


@pytest.mark.slow
def test_somebody_elses_project_inherits_its_configs(installed, tmp_path):
    base = "mmrepmlp::repmlpnet/repmlpnet-t224_8xb32_in1k.py"
    (tmp_path / "project.py").write_text(f"_base_ = [{base!r}]\nmodel = dict(head=dict(num_classes=7))\n")
    (tmp_path / "run.py").write_text(PROJECT)
    python = installed / "bin/python"
    assert run(python, "-W", "ignore", "run.py", cwd=tmp_path).splitlines()[-1] == str(
        packages_of(installed) / "mmrepmlp/__init__.py"
    )
    train = packages_of(installed) / "mmrepmlp/.mim/tools/train.py"
    assert "--work-dir" in run(python, "-W", "ignore", train, "--help", cwd=tmp_path)


@pytest.mark.slow
def test_every_verb_works_without_a_clone(installed, digits, options, tmp_path):
    """From training by the installed command to a prediction."""
    command, config = installed / "bin/mmrepmlp", "mmrepmlp::repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"
    for verb in ("train", "test", "infer", "reparameterize", "deploy", "benchmark"):
        began = time.monotonic()
        assert run(command, verb, "--help", cwd=tmp_path).startswith(f"usage: mmrepmlp {verb} ")
        assert time.monotonic() - began < 2  # imports no framework, on a machine that is busy
    few = {f"{split}_dataloader.dataset.indices": 64 for split in ("train", "val", "test")}
    settings = {**options, **few, "train_cfg.max_epochs": 1}
    arguments = ["--cfg-options", *(f"{name}={value}" for name, value in settings.items())]
    run(command, "train", config, "--work-dir", "run", *arguments, cwd=tmp_path)
    own = "run/repmlpnet-mini_1xb64_digits-64px.py"  # the config that the training wrote
    image = next(digits.glob("val/3/*"))
    others = (
        f"reparameterize {own} run/epoch_1.pth deploy.pth --verify-on test",
        "test deploy.py --progress",
        f"infer {own} run/epoch_1.pth {image} --out o",
    )
    printed = run(installed / "bin/python", "-W", "ignore", "-c", VERBS, *others, cwd=tmp_path)
    assert printed.count("accuracy/top1") >= 2
    assert printed.endswith("o/predictions.jsonl: predictions for 1 image\n")
