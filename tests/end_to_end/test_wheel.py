# SPDX-License-Identifier: Apache-2.0
"""The package as others get it: a wheel in an environment that has never seen the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IGNORED = (".*", "build", "data", "dist", "work_dirs", "*.egg-info", "__pycache__")
LINES = ("mm", "onedl")
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


def run(*command: object, cwd: Path) -> str:
    # Without what would find the checkout.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(build_once) -> Path:
    def write(folder: Path) -> None:
        shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*IGNORED))
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        run(*pip, "--wheel-dir", folder, folder / "source", cwd=folder)

    return next(build_once("wheel", write).glob("mmrepmlp-*.whl"))


def test_it_carries_configs_tools_and_index(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [ROOT / "model-index.yml", *(p for top in ("configs", "tools") for p in (ROOT / top).rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"mmrepmlp/.mim/{path.relative_to(ROOT)}" in names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".pyc")]


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
        assert found == {"mmengine", "mmcv", framework}
    for extra, framework in [*frameworks.items(), ("det", "mmdetection")]:
        found = {name for name in names(f"onedl-{extra}") if name.startswith(LINES)}
        assert found == {"onedl-mmengine", "onedl-mmcv", f"onedl-{framework}"}
    assert not any(name.startswith(LINES) for extra in ("export", "dev") for name in names(extra))


@pytest.mark.slow
def test_somebody_elses_project_inherits_its_configs(wheel, tmp_path):
    """In an environment of its own, whose other packages are those of this one."""
    venv, project = tmp_path / "venv", tmp_path / "project"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin/python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    project.mkdir()
    base = "mmrepmlp::repmlpnet/repmlpnet-t224_8xb32_in1k.py"
    (project / "project.py").write_text(f"_base_ = [{base!r}]\nmodel = dict(head=dict(num_classes=7))\n")
    (project / "run.py").write_text(PROJECT)
    installed = run(python, "-W", "ignore", "run.py", cwd=project).splitlines()[-1]
    assert installed == str(packages / "mmrepmlp/__init__.py")
    usage = run(python, "-W", "ignore", packages / "mmrepmlp/.mim/tools/train.py", "--help", cwd=project)
    assert "--work-dir" in usage
