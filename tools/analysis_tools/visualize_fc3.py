# SPDX-License-Identifier: Apache-2.0
"""Draw the receptive weights of an output pixel in each stage, before and after Locality Injection."""

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--channel-set", type=int, help="index of the set of channels (default: 0)")
    parser.add_argument(
        "--pixel",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="output pixel in the first stage's tile (default: the center)",
    )
    run_tool(parser, "visualize_fc3")


if __name__ == "__main__":
    main()
