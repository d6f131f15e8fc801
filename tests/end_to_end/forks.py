# SPDX-License-Identifier: Apache-2.0
"""Run Python scripts, each in a process of its own forked from one that has imported what all of them import.

Called with JSON: the names of the modules to import first, and the command lines, scripts with arguments. Prints
JSON: what each ended with, wrote to stdout, and to stderr.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path


def run(script: str, *arguments: str) -> tuple[int, str, str]:
    """Run a script as ``python script arguments`` does; its exit code and what it wrote."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, *(file.seek(0) or file.read() for file in (out, err))


if __name__ == "__main__":
    modules, commands = map(json.loads, sys.argv[1:])
    for module in modules:
        importlib.import_module(module)
    results = [run(*command) for command in commands]
    print(json.dumps(results))
