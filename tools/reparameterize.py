# SPDX-License-Identifier: Apache-2.0
"""Convert a trained checkpoint to deploy form, verify its outputs, and write it with a config."""

from rich.console import Console

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--ema", "--allow-unsafe", "--overwrite")
    parser.add_argument("out", help="base name of the files: NAME.pth gives NAME-<hash>.pth and NAME.py")
    parser.add_argument("--check", action="store_true", help="only report, write nothing")
    parser.add_argument("--verify-on", choices=["test"], help="evaluate both forms on the config's test set as well")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest allowed difference in float32, relative to an output's largest value (default: 1e-5)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="precision to write; the conversion is done in float32 (default: the checkpoint's)",
    )
    parser.add_argument(
        "--keep-training-state", action="store_true", help="keep optimizer, schedulers and message hub as well"
    )
    Console().print(run_tool(parser, "reparameterize_checkpoint").table())


if __name__ == "__main__":
    main()
