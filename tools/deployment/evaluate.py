# SPDX-License-Identifier: Apache-2.0
"""Evaluate a deployed network on a config's test set, inside the framework's loop."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "--work-dir", "--cfg-options")
    parser.add_argument("out_dir", help="folder written by deploy.py for a model of this config")
    run_tool(parser, "evaluate_deployment")


if __name__ == "__main__":
    main()
