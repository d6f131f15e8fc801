# SPDX-License-Identifier: Apache-2.0
"""Draw what a segmentor or detector sees in its first test images: image, truth and prediction side by side."""

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--images", type=int, help="number of images (default: 6)")
    parser.add_argument("--score", type=float, help="least score of a detection (default: 0.5)")
    run_tool(parser, "draw_predictions")


if __name__ == "__main__":
    main()
