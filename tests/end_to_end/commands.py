# SPDX-License-Identifier: Apache-2.0
import os
import subprocess

from tests.end_to_end import processes
from tests.fixtures import ROOT

OVERRIDES = ("MAKEFLAGS", "MFLAGS", "PYTHON", "STACK", "TORCH", "VENV")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in the root of the repository, with what it prints captured, and without the overrides of make."""
    inherited = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    env = {**inherited, "PYTHONWARNINGS": "ignore", **environment}
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def run_script(*command: object) -> subprocess.CompletedProcess:
    """Run a Python script with arguments in a process of its own, as :func:`run` does."""
    return processes.run([str(part) for part in command], str(ROOT), {**os.environ, "PYTHONWARNINGS": "ignore"})


def run_tool(tool: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a tool, named by its path in tools/, in a process of its own."""
    return run_script(f"tools/{tool}", *arguments)
