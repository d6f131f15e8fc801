# SPDX-License-Identifier: Apache-2.0
"""Shared code of the command lines in tools/: common arguments, and errors without a traceback."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from traceback import walk_tb
from types import FrameType
from urllib.error import URLError

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
        try:
            super().__call__(parser, namespace, values, option)
        except (AssertionError, ValueError, RecursionError) as error:  # of MMEngine's reader of lists and tuples
            text = "a value cannot be read; expected numbers, words, and lists of them such as [1,2] or [(a,b),c]"
            raise argparse.ArgumentError(self, f"{text}, not {' '.join(values)!r}") from error


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
    "--progress": dict(
        action="store_true", help="print a progress bar, metrics and warnings; the log goes to its file alone"
    ),
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
    does not exist or cannot be written, a package that is not installed, a type or an argument in a config that does
    not exist. Any other keeps its traceback.

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
        message = next(filter(None, map(explain, exception_chain(error))), None)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__


def explain(error: BaseException) -> str | None:
    """What to report of an error that is expected; None for any other."""
    if isinstance(error, URLError):
        return f"A download failed: {error.reason}. Put the file where the config expects it, or mend the connection."
    if isinstance(error, (MMRepMLPError, OSError, ImportError)):
        return str(error)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    if isinstance(error, ValueError) and module_of(frames[-1]).startswith("mmrepmlp."):
        return str(error)
    return explain_build(error, frames) if isinstance(error, (KeyError, TypeError)) else None


def explain_build(error: KeyError | TypeError, frames: list[FrameType]) -> str | None:
    """Name the type or the argument in a config that does not exist, if that is what ended a function that builds a
    part of it; None for any other error."""
    in_builder = is_builder(frames[-1])
    while frames[-1].f_code.co_name == "__init__":  # constructors hand unknown arguments on to their bases
        frames = frames[:-1]
    part = frames[-1].f_locals.get("cfg") if is_builder(frames[-1]) else None
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    handed_on = argument and isinstance(part, Mapping) and argument[1] in part
    if not (in_builder or handed_on):
        return None
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None:
        return f"A part of the config cannot be built: {error.args[0]}"
    if isinstance(error, TypeError):
        return f"type={kind!r} in the config cannot be built: {error}. Correct its arguments."
    return (
        f"type={kind!r} in the config is unknown. Correct the name, or add the module that registers it to "
        "custom_imports."
    )


def is_builder(frame: FrameType) -> bool:
    """Whether a frame is of a function that builds parts of a config."""
    return module_of(frame).startswith(("mmengine.registry.", "mmcv.cnn.bricks."))


def module_of(frame: FrameType) -> str:
    """Name of the module whose code a frame runs."""
    return frame.f_globals.get("__name__", "")
