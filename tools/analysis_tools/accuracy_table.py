# SPDX-License-Identifier: Apache-2.0
"""Print what deployed networks lose against PyTorch, of any configs, as measured by deploy.py --verify-on test."""

from rich.console import Console

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("folders", nargs="+", help="folders written by deploy.py --verify-on test")
    Console().print(run_tool(parser, "accuracy_table"))


if __name__ == "__main__":
    main()
