# SPDX-License-Identifier: Apache-2.0
"""Strip a checkpoint to what a model needs, name it by its hash, and write a model index entry for it."""

import argparse
import sys

from mmrepmlp.apis import publish_checkpoint
from mmrepmlp.checkpoint import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file of the model")
    parser.add_argument("checkpoint", help="its checkpoint; both may be those of the deploy form")
    parser.add_argument("out", help="what to name the files after: NAME.pth gives NAME-<hash>.pth and NAME-<hash>.yml")
    parser.add_argument("--report", help="a conversion's JSON report with metrics (default: the one beside CHECKPOINT)")
    parser.add_argument("--ema", action="store_true", help="publish the weights averaged over the training")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args()
    try:
        published = publish_checkpoint(**vars(args))
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    print(f"{published.checkpoint}\n{published.metafile}")


if __name__ == "__main__":
    main()
