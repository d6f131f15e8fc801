# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import CheckpointLoader

from mmrepmlp import mmengine_compat
from mmrepmlp.checkpoint import LOADERS

ROOT = Path(__file__).parents[1]


def changed() -> tuple:
    return dict(CheckpointLoader._schemes), dict(MODULE2PACKAGE)


def test_importing_applies_every_effect_and_again_changes_nothing():
    before = changed()
    schemes, packages = before
    assert schemes == LOADERS  # every scheme of this MMEngine, of either line
    assert packages["mmrepmlp"] == "mmrepmlp.registry"
    assert packages["mmseg"] == ("mmseg" if find_spec("mmseg") else "mmsegmentation")
    mmengine_compat.install()
    assert changed() == before


def test_every_effect_says_why_it_is_there():
    assert len(mmengine_compat.EFFECTS) == 3 and all(len(effect.__doc__) > 40 for effect in mmengine_compat.EFFECTS)


def test_a_clone_that_nobody_installed_has_its_configs(tmp_path):
    for name in ("mmrepmlp", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".mim", "__pycache__"))
    shutil.copy(ROOT / "model-index.yml", tmp_path)
    name = "mmrepmlp::repmlpnet/repmlpnet-t224_8xb32_in1k.py"
    script = f"from mmrepmlp.verbs.config import read_config; print(read_config({name!r}).filename)"
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(tmp_path))
    )
    assert done.stdout == f"{tmp_path}/mmrepmlp/.mim/configs/{name.partition('::')[2]}\n", done.stderr


def test_nothing_else_of_mmengine_and_torch_changes():
    """Functions and registries of the two, compared in a process of its own before and after the import."""
    script = """
import torch, mmengine, mmengine.runner, mmengine.config.utils as utils
trusted = set(map(str, torch.serialization.get_safe_globals()))
def snapshot():
    modules = {n: m for n, m in list(__import__("sys").modules.items()) if n.split(".")[0] in ("torch", "mmengine")}
    return {(n, k): id(v) for n, m in modules.items() for k, v in vars(m).items() if callable(v)}
before = snapshot()
import mmrepmlp
assert set(map(str, torch.serialization.get_safe_globals())) == trusted
after = snapshot()
print([key for key in before if after.get(key) != before[key]])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
