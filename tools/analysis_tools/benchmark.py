# SPDX-License-Identifier: Apache-2.0
"""Benchmark RepMLPNet on this machine, on the CPU or a GPU: medians of interleaved calls in one process."""

import argparse
from dataclasses import fields

from rich.console import Console

from mmrepmlp import apis
from mmrepmlp.cli import run_tool, tool_parser
from mmrepmlp.verbs.benchmark.hardware import Hardware
from mmrepmlp.verbs.benchmark.runtimes import RUNTIMES


def main() -> None:
    parser = tool_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = add_command(commands, "compare", "both forms against mmpretrain's, with the same weights")
    compare.add_argument("--batches", **BATCHES, help="batch sizes (default: 1 8)")
    compare.add_argument("--training-step", action="store_true", help="whole training steps instead of forward passes")
    compare.add_argument("--dtype", **DTYPE)
    compare.add_argument("--autocast", **AUTOCAST)
    runtimes = add_command(commands, "runtimes", "the deploy form in PyTorch and other runtimes, in several precisions")
    runtimes.add_argument("--config", help="measure the whole model of this config instead of a RepMLPNet")
    runtimes.add_argument(
        "--size", type=count, nargs=2, metavar=("H", "W"), help="with --config, the size of the images, pixels"
    )
    runtimes.add_argument("--batches", **BATCHES, help="batch sizes (default: 1 8, or 1 with --config)")
    runtimes.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), metavar="RUNTIME", help=ALL_RUNTIMES)
    Console().print(run_tool(parser, measure).table())


def add_command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """Add a subcommand with the common arguments."""
    parser = commands.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
    parser.add_argument("--arch", choices=["T", "B", "D", "L"], help="default: B")
    parser.add_argument("--img-size", type=count, help="image size of one tile, pixels (default: 224)")
    parser.add_argument("--device", help="cpu or a GPU, e.g. cuda:1 (default: cpu)")
    parser.add_argument("--threads", type=count, help="number of threads (default: torch's choice)")
    parser.add_argument("--tf32", action="store_true", help="on a GPU, let float32 products round to TF32")
    parser.add_argument("--channels-last", action="store_true", help="lay maps out with channels last")
    parser.add_argument("--repeats", type=count, help="timed calls per measurement (default: 15)")
    parser.add_argument("--json", help="JSON file to write the results to")
    parser.add_argument("--plot", help="plot of the results to write, PNG")
    return parser


def count(text: str) -> int:
    """A number from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, not {text}")
    return number


DTYPE = dict(choices=["float32", "float64", "bfloat16", "float16"], help="default: float32")
AUTOCAST = dict(choices=["bfloat16", "float16"], help="compute in torch's autocast (default: without)")
BATCHES = dict(type=count, nargs="+")
ALL_RUNTIMES = f"of {', '.join(map(repr, RUNTIMES))} (default: all)"
OPERATIONS = dict(
    compare="benchmark_repmlpnet",
    runtimes="benchmark_runtimes",
)


def measure(command: str, json: str | None = None, plot: str | None = None, **settings) -> object:
    """Run a benchmark and write the requested files."""
    hardware = {field.name: settings.pop(field.name) for field in fields(Hardware) if field.name in settings}
    report = getattr(apis, OPERATIONS[command])(**settings, hardware=Hardware(**hardware))
    if json:
        report.save_json(json)
    if plot:
        report.plot(plot)
    return report


if __name__ == "__main__":
    main()
