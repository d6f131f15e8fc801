# SPDX-License-Identifier: Apache-2.0
"""Draw predictions for the first test images: image, ground truth and prediction side by side."""

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--images", type=int, help="number of images (default: 6)")
    parser.add_argument("--score", type=float, help="score threshold of detections (default: 0.5)")
    run_tool(parser, "draw_predictions")


if __name__ == "__main__":
    main()
