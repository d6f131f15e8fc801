# SPDX-License-Identifier: Apache-2.0
"""Train a model from a config of mmpretrain, mmsegmentation or mmdetection."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "--work-dir", "--cfg-options", "--launcher", "--local-rank", "--progress")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="checkpoint to resume from; without a value, the latest in the work dir",
    )
    parser.add_argument("--amp", action="store_true", help="train with automatic mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    run_tool(parser, "train")


if __name__ == "__main__":
    main()
