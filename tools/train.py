# SPDX-License-Identifier: Apache-2.0
"""Train a model from a config of mmpretrain, mmsegmentation or mmdetection."""

import argparse
import os

from mmengine.config import DictAction

from mmrepmlp.apis import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", help="checkpoint to go on from; without one, the latest in the work dir"
    )
    parser.add_argument("--amp", action="store_true", help="train with automatic mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="settings to override, as key=value")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch's launcher")
    args = vars(parser.parse_args())
    os.environ.setdefault("LOCAL_RANK", str(args.pop("local_rank")))
    train(**args)


if __name__ == "__main__":
    main()
