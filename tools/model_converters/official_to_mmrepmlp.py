# SPDX-License-Identifier: Apache-2.0
"""Convert a classifier checkpoint of the authors or of mmpretrain to one that our configs load, in its form."""

import argparse
import sys
from collections.abc import Callable

from mmrepmlp.apis import official_to_mmrepmlp
from mmrepmlp.checkpoint import CheckpointError


def main(convert: Callable = official_to_mmrepmlp, description: str = __doc__) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", help="file to read")
    parser.add_argument("out", help="file to write, .pth or .safetensors")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights where the file has both")
    parser.add_argument(
        "--allow-unsafe",
        action="store_true",
        help="run code that the file holds, with all your rights; only for files from people you trust",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args()
    try:
        network = convert(**vars(args))
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}: {network}")


if __name__ == "__main__":
    main()
