# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint on the test set of a config of mmpretrain, mmsegmentation or mmdetection."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "--work-dir", "--cfg-options", "--launcher", "--local-rank", "--progress")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file (default: the config's load_from)")
    parser.add_argument("--out", help="pickle file to write the predictions to")
    parser.add_argument("--deploy", action="store_true", help="convert the model to deploy form first")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation, by the config's or by flips")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="precision (default: float32)")
    run_tool(parser, "evaluate")


if __name__ == "__main__":
    main()
