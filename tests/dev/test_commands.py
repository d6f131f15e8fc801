# SPDX-License-Identifier: Apache-2.0
"""What only development needs starts, and names what is there."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from dev.check_environments import LITE_TESTS

ROOT = Path(__file__).parents[2]
MODULES = [path for path in sorted((ROOT / "dev").rglob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # other tests import it, too
def test_each_command_shows_its_help(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(".".join(path.relative_to(ROOT).with_suffix("").parts), run_name="__main__")
    assert "usage:" in capsys.readouterr().out


def test_what_is_named_is_there():
    script = (ROOT / "dev/demo_accuracy.sh").read_text()
    configs = re.findall(r"[\w/.-]+\.py", script.replace("measure ", ""))
    folders = [ROOT, ROOT / "configs", ROOT / "configs/quantization"]
    assert len(configs) > 5
    assert [name for name in configs if not any((folder / name).is_file() for folder in folders)] == []
    assert [name for name in LITE_TESTS if not (ROOT / name).exists()] == []
