# SPDX-License-Identifier: Apache-2.0
"""What the command lines in tools/ share: arguments of one meaning, and errors in one sentence."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from types import TracebackType

from mmengine.config import DictAction

from mmrepmlp import apis
from mmrepmlp.errors import MMRepMLPError


class SetLocalRank(argparse.Action):
    """Export what torch's older launcher passes as an argument; the newer one sets the variable itself."""

    def __call__(self, parser: object, namespace: object, value: str, option: str | None = None) -> None:
        os.environ.setdefault("LOCAL_RANK", value)


class MergeSettings(DictAction):
    """MMEngine's ``KEY=VALUE`` arguments, with an error of argparse's own where there is no ``=``."""

    def __call__(self, parser: object, namespace: object, values: list[str], option: str | None = None) -> None:
        for value in values:
            if "=" not in value:
                raise argparse.ArgumentError(self, f"expected KEY=VALUE, not {value!r}")
        super().__call__(parser, namespace, values, option)


ARGUMENTS = {
    "config": dict(help="config file, or package::path"),
    "checkpoint": dict(help="checkpoint file"),
    "out": dict(help="file to write, .pth or .safetensors"),
    "--work-dir": dict(help="folder for logs and checkpoints (default: work_dirs/<name of the config>)"),
    "--cfg-options": dict(
        nargs="+", action=MergeSettings, metavar="KEY=VALUE", help="settings of the config to override"
    ),
    "--launcher": dict(choices=["none", "pytorch", "slurm", "mpi"], help="job launcher (default: none)"),
    "--local-rank": dict(action=SetLocalRank, dest=argparse.SUPPRESS, help="set by torch's launcher"),
    "--ema": dict(action="store_true", help="take the weights averaged over the training"),
    "--overwrite": dict(action="store_true", help="replace what is there already"),
    "--allow-unsafe": dict(
        action="store_true",
        help="run code that the checkpoint holds, with all your rights; only for files from people you trust",
    ),
}


def tool_parser(description: str, *names: str) -> argparse.ArgumentParser:
    """Start the parser of a tool. Options that are not given are left out, so that the operation's defaults hold.

    Args:
        description: What the tool does, its docstring.
        *names: Which of :data:`ARGUMENTS` it takes.
    """
    parser = argparse.ArgumentParser(description=description, argument_default=argparse.SUPPRESS)
    add_arguments(parser, *names)
    return parser


def add_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Give a parser some of :data:`ARGUMENTS`."""
    for name in names:
        spellings = (name, "--local_rank") if name == "--local-rank" else (name,)
        parser.add_argument(*spellings, **ARGUMENTS[name])


def run_tool(parser: argparse.ArgumentParser, operation: str | Callable[..., object]) -> object:
    """Call an operation with the arguments of the command line.

    An error that was to be expected ends the process with ``error: ...`` and exit code 1: one that this package raises,
    a file that is not there or cannot be written, a package that is not installed. Any other keeps its traceback.

    Args:
        parser: Its arguments are the operation's.
        operation: Name of an operation of :mod:`mmrepmlp.apis`, or a function of the tool's own.

    Returns:
        What the operation returns.
    """
    arguments = vars(parser.parse_args())
    try:
        return (getattr(apis, operation) if isinstance(operation, str) else operation)(**arguments)
    except Exception as error:
        expected = next((link for link in chain(error) if is_expected(link)), None)
        if expected is None:
            raise
        sys.exit(f"error: {expected}")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: MMEngine's registries wrap what a constructor raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_expected(error: BaseException) -> bool:
    """Whether an error's message says all that its reader needs."""
    if isinstance(error, ValueError):
        return raised_in(error.__traceback__).split(".")[0] == "mmrepmlp"
    return isinstance(error, (MMRepMLPError, OSError, ImportError))


def raised_in(traceback: TracebackType | None) -> str:
    """Name of the module that an error comes from."""
    name = ""
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return name
