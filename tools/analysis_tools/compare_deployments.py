# SPDX-License-Identifier: Apache-2.0
"""Compare deployed networks of one model, e.g. float32 and int8: accuracy on the config's test set, size, latency."""

from rich.console import Console

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "--work-dir", "--cfg-options")
    parser.add_argument("folders", nargs="+", help="folders written by deploy.py for models of this config")
    Console().print(run_tool(parser, "compare_deployments").table())


if __name__ == "__main__":
    main()
