# SPDX-License-Identifier: Apache-2.0
"""What the processes do that tests kill."""

import logging
import os
import resource
import signal
import time
from collections.abc import Callable

import torch

from mmrepmlp.apis import reparameterize_checkpoint, train
from mmrepmlp.checkpoint import writing


def quietly(function: Callable, *arguments: object, **options: object) -> None:
    """Run a function in one thread and without its output."""
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    logging.disable()
    function(*arguments, **options)


def convert(*arguments: object, delay: float = 0, **options: object) -> None:
    """Convert a checkpoint, on a disk that takes ``delay`` seconds for each file, before and after its renaming."""
    commit = writing.commit

    def slow_commit(*paths: object) -> None:
        time.sleep(delay)
        commit(*paths)
        time.sleep(delay)

    writing.commit = slow_commit
    quietly(reparameterize_checkpoint, *arguments, overwrite=True, **options)


def convert_and_die(commits: int, *arguments: object) -> None:
    """Convert a checkpoint in a process that kills itself with one more file written, which has no name yet."""
    commit, paths = writing.commit, []

    def last_commit(*files: object) -> None:
        if len(paths) == commits:
            os.kill(os.getpid(), signal.SIGKILL)
        paths.append(files)
        commit(*files)

    writing.commit = last_commit
    quietly(reparameterize_checkpoint, *arguments, overwrite=True)


def convert_on_full_disk(size: int, *arguments: object, **options: object) -> None:
    """Convert a checkpoint where no file can be larger than ``size`` bytes; exits with 3 on the error of that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        quietly(reparameterize_checkpoint, *arguments, overwrite=True, **options)
    except OSError:
        os._exit(3)


def train_digits(config: str, work_dir: str, options: dict) -> None:
    """Train, going on from whatever an earlier process left."""
    quietly(train, config, work_dir=work_dir, resume="auto", cfg_options=options)
