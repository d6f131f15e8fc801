# SPDX-License-Identifier: Apache-2.0
"""Draw by what weights a pixel listens to its tile, before and after Locality Injection, stage by stage."""

import argparse
import sys

from mmrepmlp.apis.visualize import visualize_fc3
from mmrepmlp.checkpoint import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file of a model in training form")
    parser.add_argument("checkpoint", help="its checkpoint")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--channel-set", type=int, default=0, help="which of a stage's layers (default: %(default)s)")
    parser.add_argument(
        "--pixel", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="in the first stage's tile (default: the middle)"
    )
    try:
        visualize_fc3(**vars(parser.parse_args()))
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
