# SPDX-License-Identifier: Apache-2.0
"""Measure what fc3 and the local perceptron of a RepMLPNet contribute: train a config whole and without either, test it
with either set to zero after training, and print the metrics, mean and standard deviation over the seeds."""

from rich.console import Console

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "--work-dir", "--cfg-options")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to train with (default: 0 1 2)")
    parser.add_argument("--out", metavar="RESULT.json", help="write the metrics of each seed here")
    Console().print(run_tool(parser, "ablate").table())


if __name__ == "__main__":
    main()
