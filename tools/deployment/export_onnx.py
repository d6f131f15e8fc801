# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to ONNX in deploy form, run the graph in ONNX Runtime, and write it if the outputs agree."""

import argparse
import sys

from rich.console import Console

from mmrepmlp.apis.onnx import export_checkpoint
from mmrepmlp.checkpoint import CheckpointError
from mmrepmlp.export import DYNAMIC_AXES, ExportError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file of a classifier or segmentor")
    parser.add_argument("checkpoint", help="its checkpoint; both may be those of the deploy form")
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels of the images (default: img_size)"
    )
    parser.add_argument("--batch", type=int, default=1, help="number of images, unless it is dynamic (default: 1)")
    parser.add_argument(
        "--dynamic",
        nargs="*",
        choices=list(DYNAMIC_AXES),
        default=["batch"],
        help="what the graph leaves open (default: batch)",
    )
    parser.add_argument("--opset", type=int, default=20, help="version of ONNX's operators (default: %(default)s)")
    parser.add_argument("--backbone-only", action="store_true", help="leave the head out")
    parser.add_argument("--no-deploy", dest="deploy", action="store_false", help="export the form that it is in")
    parser.add_argument("--ema", action="store_true", help="take the weights averaged over the training")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative to an output (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    try:
        report = export_checkpoint(**vars(parser.parse_args()))
    except (OSError, ValueError, CheckpointError, ExportError) as error:
        sys.exit(f"error: {error}")
    Console().print(report.table())


if __name__ == "__main__":
    main()
