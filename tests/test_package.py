# SPDX-License-Identifier: Apache-2.0
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmrepmlp.models
from tests.helpers import needs_export

ROOT = Path(__file__).parents[1]

IMPORTS = """
import sys
{statement}
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def modules_after(statement: str) -> set[str]:
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS.format(statement=statement)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_networks_are_imported_on_first_use_and_need_no_framework_and_no_compiled_ops():
    loaded = modules_after(
        "import mmrepmlp; assert 'mmrepmlp.models' not in sys.modules; from mmrepmlp import RepMLPNet; "
        "import mmrepmlp.engine; assert 'mmcv.ops' not in sys.modules"
    )
    assert "mmcv" in loaded and not {"mmpretrain", "mmseg", "mmdet", "sklearn"} & loaded
    assert mmrepmlp.RepMLPNet is mmrepmlp.models.RepMLPNet and set(mmrepmlp.NETWORKS) <= set(mmrepmlp.models.__all__)


def import_again(module: str, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.import_module(module)


def test_export_names_the_torch_that_it_needs(monkeypatch):
    monkeypatch.setattr(torch.export, "Dim", None)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(ImportError, match=r"^Export needs torch 2.6 or newer; 2.5.1 is installed.$"):
        import_again("mmrepmlp.export", monkeypatch)


@needs_export
@pytest.mark.parametrize(
    ("package", "module", "name"), [("openvino", "openvino", "OpenVINO"), ("nncf", "post_training", "NNCF")]
)
def test_what_deployment_needs_is_named(package, module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{name} is not installed: pip install 'mmrepmlp\[openvino\]'$"):
        import_again(f"mmrepmlp.export.{module}", monkeypatch)


def test_the_algebra_needs_torch_alone():
    statement = "import importlib.util as u, os, sys; p = u.find_spec('mmrepmlp').submodule_search_locations[0]; "
    statement += "sys.path.insert(0, p); import reparam"
    assert not {"mmcv", "mmengine", "mmrepmlp"} & modules_after(statement)


@pytest.mark.parametrize("hidden", [["mmcv"], ["mmengine"], ["mmengine", "mmcv"]], ids="-".join)
@pytest.mark.parametrize("command", ["import mmrepmlp", "import mmrepmlp.models", "tools/train.py"])
def test_missing_packages_are_named_with_both_ways_to_install_them(hidden, command):
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"
    if command.startswith("tools"):
        command = f"import runpy; runpy.run_path({str(ROOT / command)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", f"{hide}\n{command}"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: mmrepmlp needs {' and '.join(hidden)}: pip install 'mmrepmlp[cls]' (or seg, det) installs "
        "open-mmlab's packages, pip install 'mmrepmlp[onedl-cls]' (or onedl-seg, onedl-det) those maintained by onedl."
    )


SUITABLE = {
    "mmcv": "2.0.0 up to, but not including, 3.0.0",
    "mmengine": "0.10.4 up to, but not including, 1.0.0",
}
UNSUITABLE = [("mmcv", "1.7.0"), ("mmcv", "3.0.0"), ("mmengine", "0.9.1"), ("mmengine", "1.0.0")]
TRY_VERSIONS = """
import importlib, sys
for name, version in {unsuitable}:
    package = importlib.import_module(name)
    installed, package.__version__ = package.__version__, version
    try:
        import mmrepmlp
    except ImportError as error:
        print(error)
    package.__version__ = installed
    for module in [module for module in sys.modules if module.startswith("mmrepmlp")]:
        del sys.modules[module]
"""


def test_an_unsuitable_version_is_named():
    command = [sys.executable, "-W", "ignore", "-c", TRY_VERSIONS.format(unsuitable=UNSUITABLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{name} {version} is installed; mmrepmlp works with {SUITABLE[name]}." for name, version in UNSUITABLE
    ]
