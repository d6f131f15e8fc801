# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint on the test set of a config of mmpretrain, mmsegmentation or mmdetection."""

import argparse
import os

from mmengine.config import DictAction

from mmrepmlp.apis import test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file (default: the config's load_from)")
    parser.add_argument("--work-dir", help="folder for logs (default: work_dirs/<name of the config>)")
    parser.add_argument("--out", help="pickle file to write the predictions to")
    parser.add_argument("--deploy", action="store_true", help="convert the model to deploy form first")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="settings to override, as key=value")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch's launcher")
    args = vars(parser.parse_args())
    os.environ.setdefault("LOCAL_RANK", str(args.pop("local_rank")))
    test(**args)


if __name__ == "__main__":
    main()
