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
    parser.add_argument("out", help="what to name the files after: NAME.pth gives NAME-<hash>.pth and NAME.py")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier conversion")
    parser.add_argument("--check", action="store_true", help="report alone, write nothing")
    parser.add_argument("--verify-on", choices=["test"], help="evaluate both forms on the config's test set as well")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="accepted difference in float32, relative to an output's largest value (default: %(default)s)",
    )
    parser.add_argument("--ema", action="store_true", help="convert the weights averaged over the training")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="precision to write; the conversion is done in float32 (default: the checkpoint's)",
    )
    parser.add_argument(
        "--keep-training-state", action="store_true", help="keep optimizer, schedulers and message hub as well"
    )
    parser.add_argument(
        "--allow-unsafe",
        action="store_true",
        help="run code that the checkpoint holds, with all your rights; only for files from people you trust",
    )
    args = parser.parse_args()
    try:
        report = reparameterize_checkpoint(**vars(args))
    except (OSError, ValueError, CheckpointError, ConversionError) as error:
        sys.exit(f"error: {error}")
    Console().print(report.table())


if __name__ == "__main__":
    main()
