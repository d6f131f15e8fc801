# SPDX-License-Identifier: Apache-2.0
"""Draw the receptive weights of an output pixel before and after Locality Injection, stage by stage, and print how much
of them is fc3's own."""

from mmrepmlp.cli import Parser, parse_and_run


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_all("config", "checkpoint")
    parser.add("out", help="picture to write, PNG")
    parser.add("--channel-set", type=int, help="which of a stage's layers (default: 0)")
    parser.add(
        "--pixel", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="in the first stage's tile (default: the center)"
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
