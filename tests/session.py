# SPDX-License-Identifier: Apache-2.0
"""What holds for a whole run of the tests; ``conftest.py`` hands the hooks to pytest."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis.configuration import set_hypothesis_home_dir

from tests.fixtures import ROOT

# What tools keep in a checkout for the next time.
KEPT = {".git", "__pycache__", ".pytest_cache", ".ruff_cache"}
FILES, LEFT = pytest.StashKey[set[Path]](), pytest.StashKey[set[Path]]()


def files_in(folder: Path) -> set[Path]:
    """All files in a folder, but for virtual environments and what is :data:`KEPT`."""
    found = set()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name not in KEPT and not (path / "pyvenv.cfg").exists():
                found |= {path} | files_in(path)
        else:
            found.add(path)
    return found


def pytest_configure(config):
    """Compute in one thread, in this process and those that it starts: there is a process of tests for each core."""
    os.environ["OMP_NUM_THREADS"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    torch.set_num_threads(1)
    # On a build server OpenVINO tells its makers nothing; else each conversion forks this large process dozens of times
    # to do so, and a fork of a process with threads may hang.
    os.environ.setdefault("TF_BUILD", "tests")
    if hasattr(config, "cache"):
        set_hypothesis_home_dir(config.cache.mkdir("hypothesis"))


def pytest_collection_finish(session):
    """Leave what is imported by now out of the search for garbage, which Python and MMEngine's datasets make often."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 50)


def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):
        session.config.stash[FILES] = files_in(ROOT)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Begin with the slow tests where several processes share them, so that all end at the same time."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail if tests left files in the checkout."""
    files = session.config.stash.get(FILES, None)
    if files is not None:
        session.config.stash[LEFT] = files_in(ROOT) - files
        if session.config.stash[LEFT]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for path in sorted(config.stash.get(LEFT, ())):
        terminalreporter.write_line(f"The tests left {path.relative_to(ROOT)} in the checkout.", red=True)
