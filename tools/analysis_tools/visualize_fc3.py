# SPDX-License-Identifier: Apache-2.0
"""Draw the receptive weights of an output pixel before and after Locality Injection, stage by stage, and print how much
of them is fc3's own."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--channel-set", type=int, help="which of a stage's layers (default: 0)")
    parser.add_argument(
        "--pixel", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="in the first stage's tile (default: the center)"
    )
    for stage, share in enumerate(run_tool(parser, "visualize_fc3"), 1):
        print(f"stage {stage}: fc3 share {share:.3f}")


if __name__ == "__main__":
    main()
