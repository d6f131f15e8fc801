# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

from tests.fixtures import ROOT


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in the root of the repository, with what it prints captured."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "TORCH")}
    env = {**inherited, "PYTHONWARNINGS": "ignore", **environment}
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def run_tool(tool: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run one of tools/, named by its path in there, which may end in a subcommand."""
    return run(sys.executable, *f"tools/{tool}".split(), *arguments)
