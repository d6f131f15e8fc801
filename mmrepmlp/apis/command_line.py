# SPDX-License-Identifier: Apache-2.0
"""Shared code of the command lines in tools/: common arguments, and errors without a traceback."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from types import TracebackType

from mmengine.config import DictAction

from mmrepmlp import apis
from mmrepmlp.errors import MMRepMLPError


class SetLocalRank(argparse.Action):
    """Set LOCAL_RANK from the argument of torch's old launcher; the current one sets the variable itself."""

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
    "--ema": dict(action="store_true", help="use the weights averaged over the training (EMA)"),
    "--overwrite": dict(action="store_true", help="replace existing files"),
    "--allow-unsafe": dict(
        action="store_true",
        help="run code that the checkpoint holds, with all your permissions; only for files from trusted sources",
    ),
}


def tool_parser(description: str, *names: str) -> argparse.ArgumentParser:
    """Create the parser of a tool. Options that are not given are omitted, so that the operation's defaults apply.

    Args:
        description: Description of the tool, its docstring.
        *names: Names from :data:`ARGUMENTS`.
    """
    parser = argparse.ArgumentParser(description=description, argument_default=argparse.SUPPRESS)
    add_arguments(parser, *names)
    return parser


def add_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add arguments from :data:`ARGUMENTS` to a parser."""
    for name in names:
        spellings = (name, "--local_rank") if name == "--local-rank" else (name,)
        parser.add_argument(*spellings, **ARGUMENTS[name])


def run_tool(parser: argparse.ArgumentParser, operation: str | Callable[..., object]) -> object:
    """Call an operation with the arguments of the command line.

    An expected error ends the process with ``error: ...`` and exit code 1: one that this package raises, a file that
    does not exist or cannot be written, a package that is not installed. Any other keeps its traceback.

    Args:
        parser: Parser whose arguments are those of the operation.
        operation: Name of an operation of :mod:`mmrepmlp.apis`, or any function.

    Returns:
        The result of the operation.
    """
    arguments = vars(parser.parse_args())
    try:
        return (getattr(apis, operation) if isinstance(operation, str) else operation)(**arguments)
    except Exception as error:
        expected = next((link for link in exception_chain(error) if is_expected(link)), None)
        if expected is None:
            raise
        sys.exit(f"error: {expected}")


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes: MMEngine's registries wrap the errors of constructors."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_expected(error: BaseException) -> bool:
    """Whether an error can be reported without a traceback."""
    if isinstance(error, ValueError):
        return raising_module(error.__traceback__).split(".")[0] == "mmrepmlp"
    return isinstance(error, (MMRepMLPError, OSError, ImportError))


def raising_module(traceback: TracebackType | None) -> str:
    """Name of the module that raised an error."""
    name = ""
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return name
