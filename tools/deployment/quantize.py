# SPDX-License-Identifier: Apache-2.0
"""Quantize a classifier or segmentor to int8 after training, and compare accuracy, size and speed."""

import argparse
import sys

from mmengine.config import DictAction
from rich.console import Console

from mmrepmlp.apis.quantize import quantize_checkpoint
from mmrepmlp.checkpoint import CheckpointError
from mmrepmlp.export import ExportError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="its checkpoint; both may be those of the deploy form")
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument("--images", type=int, default=128, help="training images to calibrate with (default: 128)")
    parser.add_argument(
        "--keep-float", type=int, default=0, metavar="N", help="leave the N nodes that lose most in float32"
    )
    parser.add_argument("--work-dir", help="folder for logs (default: work_dirs/<name of the config>)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="settings to override, as key=value")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    try:
        report = quantize_checkpoint(**vars(parser.parse_args()))
    except (OSError, ValueError, CheckpointError, ExportError) as error:
        sys.exit(f"error: {error}")
    Console().print(report.table())


if __name__ == "__main__":
    main()
