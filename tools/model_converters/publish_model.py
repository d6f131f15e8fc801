# SPDX-License-Identifier: Apache-2.0
"""Reduce a checkpoint to the model's weights, name it by its hash, and write a model index entry for it."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--ema", "--allow-unsafe", "--overwrite")
    parser.add_argument("out", help="base name of the files: NAME.pth gives NAME-<hash>.pth and NAME-<hash>.yml")
    parser.add_argument(
        "--report", help="a conversion's JSON report with metrics (default: the one next to CHECKPOINT)"
    )
    published = run_tool(parser, "publish_checkpoint")
    print(f"{published.checkpoint}\n{published.metafile}")


if __name__ == "__main__":
    main()
