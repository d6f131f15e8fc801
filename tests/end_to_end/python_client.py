# SPDX-License-Identifier: Apache-2.0
"""Stand for ``python``: have a server of ``processes.py`` run a script or the command, and Python itself the rest."""

import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Client


def ask(address: str, command: Sequence[str]) -> int:
    """Have a script run with the streams, the folder and the variables of this process; its exit code."""
    streams = [f"/proc/{os.getpid()}/fd/{number}" for number in (1, 2)]
    with Client(address) as connection:
        connection.send((command, os.getcwd(), dict(os.environ), streams))
        return connection.recv()


if __name__ == "__main__":
    address, *arguments = sys.argv[1:]
    script = arguments[arguments[:1] == ["-u"] :]
    if script[0].startswith("-") and script[:2] != ["-m", "mmrepmlp"]:
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.exit(ask(address, script))
