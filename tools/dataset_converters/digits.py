# SPDX-License-Identifier: Apache-2.0
"""Write scikit-learn's handwritten digits, 1,797 real scans, in the ImageNet folder layout."""

import argparse
import sys

from mmrepmlp.datasets import write_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/digits", help="folder to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    args = parser.parse_args()
    try:
        counts = write_digits(args.out, args.overwrite)
    except (OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))


if __name__ == "__main__":
    main()
