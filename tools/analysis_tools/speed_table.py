# SPDX-License-Identifier: Apache-2.0
"""Print the README's speed table, in Markdown, from results of benchmark.py compare --json."""

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULT.json", help="what benchmark.py compare --json wrote")
    print(run_tool(parser, "speed_table"))


if __name__ == "__main__":
    main()
