# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to ONNX in deploy form, and write the graph if its outputs in ONNX Runtime agree."""

from rich.console import Console

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--ema", "--overwrite")
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="image size in pixels (default: img_size)"
    )
    parser.add_argument("--batch", type=int, help="batch size, unless it is dynamic (default: 1)")
    parser.add_argument(
        "--dynamic",
        nargs="*",
        choices=["batch", "height", "width"],
        help="symbolic dimensions of the graph (default: batch)",
    )
    parser.add_argument(
        "--opset", type=int, help="ONNX opset version, from 13 to the installed onnx's newest (default: 20)"
    )
    parser.add_argument(
        "--part", help="export the maps of the backbone or neck, e.g. student.neck (default: the whole model)"
    )
    parser.add_argument("--backbone-only", dest="part", action="store_const", const="backbone", help="--part backbone")
    parser.add_argument(
        "--no-deploy", dest="deploy", action="store_false", help="export without converting to deploy form"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest allowed difference, relative to an output (default: 1e-4; 0.05 for an int8 graph)",
    )
    Console().print(run_tool(parser, "export_checkpoint").table())


if __name__ == "__main__":
    main()
