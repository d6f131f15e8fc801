# SPDX-License-Identifier: Apache-2.0
"""Draw the receptive weights of an output pixel in each stage, before and after Locality Injection.

Prints the share of fc3 in the weights of each stage.
"""

from mmrepmlp.cli import Parser, parse_and_run


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_all("config", "checkpoint")
    parser.add("out", help="PNG file to write")
    parser.add("--channel-set", type=int, help="index of the set of channels (default: 0)")
    parser.add(
        "--pixel",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="output pixel in the first stage's tile (default: center)",
    )
    parser.add_all("--cfg-options", "--traceback")
    parser.set_defaults(run=draw)
    return parser


def draw(**arguments) -> None:
    from mmrepmlp.verbs.visualize_fc3 import visualize_fc3

    for stage, share in enumerate(visualize_fc3(**arguments), 1):
        print(f"stage {stage}: fc3 share {share:.3f}")


if __name__ == "__main__":
    parse_and_run(make_parser())
