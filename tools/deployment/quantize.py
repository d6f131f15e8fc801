# SPDX-License-Identifier: Apache-2.0
"""Quantize a classifier or segmentor to int8 after training, and compare accuracy, size and speed."""

from rich.console import Console

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--work-dir", "--cfg-options", "--overwrite")
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument("--images", type=int, help="training images to calibrate with (default: 128)")
    parser.add_argument(
        "--keep-float", type=int, metavar="N", help="keep the N nodes with the largest loss in float32 (default: 0)"
    )
    Console().print(run_tool(parser, "quantize_checkpoint").table())


if __name__ == "__main__":
    main()
