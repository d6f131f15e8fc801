# SPDX-License-Identifier: Apache-2.0
"""Draw predictions for some test images: image, ground truth, and the prediction of each checkpoint."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config")
    parser.add_argument("checkpoints", nargs="+", help="checkpoints to compare, e.g. one in each form")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--images", type=int, help="number of images (default: 6, or 40 of a classifier)")
    parser.add_argument("--score", type=float, help="score threshold of detections (default: 0.5)")
    run_tool(parser, "draw_predictions")


if __name__ == "__main__":
    main()
