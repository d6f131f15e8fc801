# SPDX-License-Identifier: Apache-2.0
"""Train configs with several seeds and compare them: metrics, mean and standard deviation, and size and speed of both
forms."""

from rich.console import Console

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "--work-dir", "--cfg-options")
    parser.add_argument("configs", nargs="+", help="config files")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to train with (default: 0 1 2 3 4)")
    parser.add_argument("--int8", action="store_true", help="also test in int8, quantized after training")
    parser.add_argument("--out", metavar="RESULT.json", help="write the results here")
    Console().print(run_tool(parser, "compare_trainings").table())


if __name__ == "__main__":
    main()
