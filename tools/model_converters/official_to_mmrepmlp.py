# SPDX-License-Identifier: Apache-2.0
"""Convert a classifier checkpoint of the authors or of mmpretrain to one that our configs load, in the same form."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "checkpoint", "out", "--ema", "--allow-unsafe", "--overwrite")
    print(run_tool(parser, "official_to_mmrepmlp"))


if __name__ == "__main__":
    main()
