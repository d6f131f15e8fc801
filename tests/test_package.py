# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

IMPORTS = """
import sys
{statement}
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def modules_after(statement: str) -> set[str]:
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS.format(statement=statement)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_backbone_needs_no_framework_and_no_compiled_ops():
    loaded = modules_after("import mmrepmlp.models, mmrepmlp.engine, sys; assert 'mmcv.ops' not in sys.modules")
    assert "mmcv" in loaded and not {"mmpretrain", "mmseg", "mmdet", "sklearn"} & loaded


def test_the_algebra_needs_torch_alone():
    statement = "import importlib.util as u, os, sys; p = u.find_spec('mmrepmlp').submodule_search_locations[0]; "
    statement += "sys.path.insert(0, p); import reparam"
    assert not {"mmcv", "mmengine", "mmrepmlp"} & modules_after(statement)


def test_an_unsuitable_version_is_named():
    statement = "import mmcv; mmcv.__version__ = '1.7.0'; import mmrepmlp"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", statement], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: mmcv 1.7.0 is installed; mmrepmlp works with 2.0.0 up to, but not including, 3.0.0."
    )
