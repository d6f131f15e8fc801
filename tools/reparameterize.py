# SPDX-License-Identifier: Apache-2.0
"""Convert a trained checkpoint to deploy form, prove that the outputs are the same, write it and a config for it."""

import argparse
import sys

from rich.console import Console

from mmrepmlp.apis import ConversionError, reparameterize_checkpoint
from mmrepmlp.checkpoint import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file of the model in training form")
    parser.add_argument("checkpoint", help="its trained checkpoint")
    parser.add_argument("out", help="file to write; the config goes beside it, with the ending .py")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="accepted difference in float32, relative to an output's largest value (default: %(default)s)",
    )
    args = parser.parse_args()
    try:
        report = reparameterize_checkpoint(**vars(args))
    except (OSError, ValueError, CheckpointError, ConversionError) as error:
        sys.exit(f"error: {error}")
    Console().print(report.table())


if __name__ == "__main__":
    main()
