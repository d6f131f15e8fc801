# SPDX-License-Identifier: Apache-2.0
"""Compare a classifier in training form with its deploy form: predictions, accuracy, size, speed."""

import argparse
import sys

from rich.console import Console

from mmrepmlp.apis import compare_classifiers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    pair = dict(nargs=2, required=True, metavar=("TRAINING_FORM", "DEPLOY_FORM"))
    parser.add_argument("--configs", **pair, help="config files of both forms")
    parser.add_argument("--checkpoints", **pair, help="their checkpoints")
    parser.add_argument("--predictions", **pair, help="what tools/test.py --out wrote for them")
    comparison = compare_classifiers(**vars(parser.parse_args()))
    Console().print(comparison.table())
    if comparison.same < comparison.images:
        sys.exit(f"error: the forms disagree on {comparison.images - comparison.same} images")


if __name__ == "__main__":
    main()
