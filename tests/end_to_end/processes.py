# SPDX-License-Identifier: Apache-2.0
"""Processes that start at once: a server that has imported the frameworks, though not this package, forks them."""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from unittest.mock import patch

PRELOADED = ["tests.end_to_end.preloaded"]
ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CLIENT = Path(__file__).with_name("python_client.py")


def start(target: Callable, *arguments: object, **options: object) -> multiprocessing.Process:
    """Start a function in a process of its own."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with patch.dict(os.environ, PYTHONWARNINGS="ignore", PYTHONPATH=paths):
        forkserver.ensure_running()
    process = CONTEXT.Process(target=target, args=arguments, kwargs=options)
    process.start()
    return process


def run_script(command: Sequence[str], folder: str, environment: Mapping[str, str], streams: Sequence[str]) -> None:
    """Become what ``python script arguments`` starts in a folder, or ``python -m package``, with stdout and stderr in
    two files."""
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_APPEND), number)
    # Python's own are of what the server has there, and cannot be reconfigured where this is a pipe.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace", closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if environment.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    if command[0] == "-m":
        sys.argv, sys.path[0] = list(command[1:]), folder
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = list(command), str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def run(command: Sequence[str], folder: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Run a Python script with arguments, and wait for it."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        process = start(run_script, command, folder, environment, (out.name, err.name))
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode, out.read(), err.read())


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Run the scripts of other programs; yields what these call instead of ``python``."""
    with Listener(str(folder / "python.socket"), "AF_UNIX") as listener:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {CLIENT} {listener.address} "$@"\n')
        python.chmod(0o755)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield python


def serve(listener: Listener) -> None:
    with contextlib.suppress(OSError):  # the listener is closed
        while True:
            threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()


def answer(connection: Connection) -> None:
    """Run what a client asks for, as long as the client lives."""
    with connection:
        process = start(run_script, *connection.recv())
        if wait([process.sentinel, connection])[0] is connection:
            process.kill()
        process.join()
        with contextlib.suppress(OSError):
            connection.send(process.exitcode)
