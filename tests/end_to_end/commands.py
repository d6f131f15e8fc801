# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fixtures import ROOT

OVERRIDES = ("MAKEFLAGS", "MFLAGS", "PYTHON", "STACK", "TORCH", "VENV")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in the root of the repository, with what it prints captured, and without the overrides of make."""
    inherited = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    env = {**inherited, "PYTHONWARNINGS": "ignore", **environment}
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def run_scripts(modules: Sequence[str], commands: Sequence[Sequence[object]]) -> list[subprocess.CompletedProcess]:
    """Run Python scripts with arguments in processes of their own; what all import is imported once: see forks.py."""
    words = [[str(word) for word in command] for command in commands]
    done = run(sys.executable, Path(__file__).with_name("forks.py"), json.dumps(modules), json.dumps(words))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return [subprocess.CompletedProcess(*result) for result in zip(words, *zip(*results))]


def run_tools(*commands: Sequence[object]) -> list[subprocess.CompletedProcess]:
    """Run tools, named by their paths in tools/, which may end in a subcommand, in processes of their own."""
    lines = [[f"tools/{tool.split()[0]}", *tool.split()[1:], *arguments] for tool, *arguments in commands]
    return run_scripts(["mmrepmlp.apis.command_line"], lines)


def run_tool(tool: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run one tool."""
    (done,) = run_tools((tool, *arguments))
    return done
