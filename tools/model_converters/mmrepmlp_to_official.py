# SPDX-License-Identifier: Apache-2.0
"""Convert a classifier checkpoint to a plain state dict with the authors' names, in the same form."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "checkpoint", "out", "--ema", "--allow-unsafe", "--overwrite")
    print(run_tool(parser, "mmrepmlp_to_official"))


if __name__ == "__main__":
    main()
