# SPDX-License-Identifier: Apache-2.0
"""Compare a model in training form with its deploy form: predictions, metrics, size, speed."""

import sys

from rich.console import Console

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    pair = dict(nargs=2, required=True, metavar=("TRAINING_FORM", "DEPLOY_FORM"))
    parser.add_argument("--configs", **pair, help="config files of both forms")
    parser.add_argument("--checkpoints", **pair, help="their checkpoints")
    parser.add_argument("--predictions", **pair, help="their predictions, written by tools/test.py --out")
    parser.add_argument("--device", help="where to time them, cpu or a GPU, e.g. cuda (default: cpu)")
    comparison = run_tool(parser, "compare_forms")
    Console().print(comparison.table())
    if not comparison.equal:
        sys.exit("error: the metrics of the two forms differ")


if __name__ == "__main__":
    main()
