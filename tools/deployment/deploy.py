# SPDX-License-Identifier: Apache-2.0
"""Deploy a checkpoint as a folder: a graph that takes images as they are read, and a program that runs it without any
framework. Written only if the graph agrees with the PyTorch model."""

from rich.console import Console

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--ema", "--work-dir", "--cfg-options", "--overwrite")
    parser.add_argument("out_dir", help="folder to write")
    parser.add_argument("--runtime", help="openvino or onnxruntime (default: openvino)")
    parser.add_argument("--precision", help="float32, int8, or with OpenVINO bfloat16 (default: float32)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="image size in pixels (default: what the test pipeline resizes or crops to)",
    )
    parser.add_argument(
        "--dynamic",
        nargs="*",
        choices=["batch", "height", "width"],
        help="symbolic dimensions of the graph (default: batch, and the others if no size is known)",
    )
    parser.add_argument("--batch", type=int, help="batch size, unless it is dynamic (default: 1)")
    parser.add_argument("--part", help="deploy the maps of the backbone or neck (default: of models without a task)")
    parser.add_argument("--logits", action="store_true", help="end a segmentor in logits instead of classes")
    parser.add_argument("--images", type=int, help="training images to calibrate int8 with (default: 300)")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="largest drop of the metric on the test set; int8 leaves layers in float to keep it "
        "(default: 0.5 with --verify-on test)",
    )
    parser.add_argument("--verify-on", choices=["test"], help="measure the metric before and after on the test set")
    Console().print(run_tool(parser, "deploy_checkpoint").table())


if __name__ == "__main__":
    main()
