# SPDX-License-Identifier: Apache-2.0
"""Build MMEngine's runner with the package's checks, a progress bar and a log folder that no other run shares."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmrepmlp.checkpoint import check_folder

from .distributed import setup_distributed
from .progress import InfoFilter, add_progress

# Hooks that are added unless the config sets the switch to False, each with the reason to log.
CHECKS = {
    "check_weights": {
        "CheckWeightsHook": "a checkpoint that does not fit the model stops a test; training logs a warning."
    },
    "check_annotations": {
        "CheckAnnotationsHook": "annotations that do not fit the model stop the run.",
        "CheckLastBatchHook": "a last batch that would crash training is reported at the first.",
    },
}


def build_runner(cfg: Config, progress: bool = False, name_log: bool = True) -> Runner:
    """Build the runner of a config, set up distributed processes for its launcher, and add the hooks in :data:`CHECKS`.

    Args:
        cfg: The config, with launcher and work dir.
        progress: Whether to print metrics and, inside :func:`~mmrepmlp.verbs.progress.show_progress`, a progress bar
            instead of the log. Default: False.
        name_log: Whether to print the path of the log file, with ``progress``. Default: True.

    Raises:
        ValueError: The ``runner_type`` is unknown, or the machine has fewer GPUs than processes.
        MMRepMLPError: The environment of the launcher is incomplete.
    """
    setup_distributed(cfg)
    kind = RUNNERS.get(cfg.get("runner_type", "Runner"))
    if kind is None:
        raise ValueError(
            f"runner_type={cfg.runner_type!r} is unknown. Correct it, or add its module to custom_imports."
        )
    folder = wait_for_unique_name(cfg)
    with redirect_stdout(InfoFilter(sys.stdout) if progress else sys.stdout):
        runner = kind.from_cfg(cfg)
    if folder.absolute() != Path(runner.log_dir):  # built in the next second
        with suppress(OSError):
            folder.rmdir()
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):  # the locale's encoding may lack characters of paths
            handler.stream.reconfigure(encoding="utf-8")
    if progress:
        add_progress(runner, name_log)
    for switch, hooks in CHECKS.items():
        if cfg.get(switch, True):
            off = f"{switch}=False in the config turns it off."
            add_hooks(runner, {name: f"{reason} {off}" for name, reason in hooks.items()})
    return runner


def wait_for_unique_name(cfg: Config) -> Path:
    """Wait for a second in which no other run started that would get the same name, and create the log folder.

    MMEngine names the log folder after the second in which a run starts, and logger, message hub and visualizer after
    its config and that second. Two runs of the same config in this process, or with the same work dir in any process,
    would share log files, loss history and images. Only the process of rank 0 creates the folder.
    """
    name = cfg.get("experiment_name") or (Path(cfg.filename).stem if cfg.filename else None)
    check_folder(cfg.work_dir)
    while True:
        second = time.strftime("%Y%m%d_%H%M%S")
        folder = Path(cfg.work_dir, second)
        if not MMLogger.check_instance_created("_".join(filter(None, [name, second]))):
            if int(os.environ.get("RANK", 0)) > 0:
                return folder
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
        time.sleep(0.05)


def add_hooks(runner: Runner, reasons: Mapping[str, str]) -> None:
    """Add hooks of this package, by class name, that a runner does not have yet, and log the reason for each."""
    present = {type(hook).__name__ for hook in runner.hooks}
    for hook, reason in reasons.items():
        if hook not in present:
            runner.register_hook(dict(type=f"mmrepmlp.{hook}"))
            runner.logger.info(f"{hook} added: {reason}")
