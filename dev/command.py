# SPDX-License-Identifier: Apache-2.0
"""What the commands that measure have in common."""

import argparse
from collections.abc import Callable

from rich.console import Console

from mmrepmlp.verbs.benchmark.report import BenchmarkReport


def make_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser that omits arguments that are not set, so that the defaults of the called function apply."""
    return argparse.ArgumentParser(description=description, argument_default=argparse.SUPPRESS)


def measure_and_report(parser: argparse.ArgumentParser, measure: Callable[..., BenchmarkReport]) -> None:
    """Parse the arguments and ``--json``, measure, print the table, and write the results if a file is named."""
    parser.add_argument("--json", metavar="RESULT.json", default=None, help="write the results here")
    settings = vars(parser.parse_args())
    path = settings.pop("json")
    report = measure(**settings)
    if path:
        report.save_json(path)
    Console().print(report.table())
