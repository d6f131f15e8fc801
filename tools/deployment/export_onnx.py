# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to ONNX in deploy form, run the graph in ONNX Runtime, and write it if the outputs agree."""

from rich.console import Console

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--ema", "--overwrite")
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels of the images (default: img_size)"
    )
    parser.add_argument("--batch", type=int, help="number of images, unless it is dynamic (default: 1)")
    parser.add_argument(
        "--dynamic", nargs="*", choices=["batch", "height", "width"], help="what the graph leaves open (default: batch)"
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default: 20)")
    parser.add_argument("--backbone-only", action="store_true", help="leave the head out")
    parser.add_argument("--no-deploy", dest="deploy", action="store_false", help="export the form that it is in")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference, relative to an output (default: 1e-4; 0.05 for a graph that rounds to int8)",
    )
    Console().print(run_tool(parser, "export_checkpoint").table())


if __name__ == "__main__":
    main()
