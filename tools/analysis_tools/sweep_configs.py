# SPDX-License-Identifier: Apache-2.0
"""Try the backbone in one config of each family of mmpretrain, mmsegmentation and mmdetection, and write a table."""

from rich.console import Console

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("out", help="CSV file to write, and a Markdown file beside it; a file that exists is completed")
    parser.add_argument("--packages", nargs="+", help="packages with configs (default: mmpretrain mmseg mmdet)")
    parser.add_argument("--families", nargs="+", help="names of families (default: all)")
    parser.add_argument("--timeout", type=float, help="seconds for one family (default: 300)")
    parser.add_argument("--jobs", type=int, help="number of families at a time, one thread each (default: 2)")
    parser.add_argument("--restart", action="store_true", help="try families again that the file has")
    Console().print(run_tool(parser, "sweep_configs").table())


if __name__ == "__main__":
    main()
