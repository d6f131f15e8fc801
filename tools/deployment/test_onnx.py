# SPDX-License-Identifier: Apache-2.0
"""Evaluate an exported classifier or segmentor on a config's test set with ONNX Runtime."""

from mmrepmlp.apis.command_line import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "--work-dir", "--cfg-options", "--progress")
    parser.add_argument("onnx_file", help="file written by export_onnx.py for a model of this config")
    run_tool(parser, "evaluate_onnx")


if __name__ == "__main__":
    main()
