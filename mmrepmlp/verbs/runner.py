# SPDX-License-Identifier: Apache-2.0
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
from .progress import WithoutInformation, add_progress

# Hooks added to those of a config unless it sets the switch to False, with the reason.
CHECKS = {
    "check_weights": {
        "CheckWeightsHook": "a checkpoint that does not fit the model stops a test, and a training says so."
    },
    "check_annotations": {
        "CheckAnnotationsHook": "annotations that do not fit the model stop the run.",
        "CheckLastBatchHook": "a training that its last batch would end stops at the first.",
    },
}


def build_runner(cfg: Config, progress: bool = False, name_log: bool = True) -> Runner:
    """Build the runner of a config, with the distributed setup for its launcher and a check of what it loads.

    Args:
        cfg: The config.
        progress: Whether the terminal gets a progress bar and the metrics instead of the log; the bar while
            :func:`~mmrepmlp.verbs.progress.show_progress` has it. Default: False.
        name_log: Whether the path of the log is printed, with ``progress``; no use where it does not stay.
            Default: True.
    """
    setup_distributed(cfg)
    kind = RUNNERS.get(cfg.get("runner_type", "Runner"))
    if kind is None:
        raise ValueError(
            f"runner_type={cfg.runner_type!r} is unknown. Correct it, or add its module to custom_imports."
        )
    folder = wait_for_own_name(cfg)
    with redirect_stdout(WithoutInformation(sys.stdout) if progress else sys.stdout):
        runner = kind.from_cfg(cfg)
    if folder.absolute() != Path(runner.log_dir):  # a second later
        with suppress(OSError):
            folder.rmdir()
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):  # in the locale's encoding, in which not every path can be written
            handler.stream.reconfigure(encoding="utf-8")
    if progress:
        add_progress(runner, name_log)
    for switch, hooks in CHECKS.items():
        if cfg.get(switch, True):
            off = f"{switch}=False in the config turns it off."
            add_hooks(runner, {name: f"{reason} {off}" for name, reason in hooks.items()})
    return runner


def wait_for_own_name(cfg: Config) -> Path:
    """Wait until the second is over in which another run began, of the same config in this process or with the same
    work dir in any, and create the log folder of this run, unless it is another process of the same run.

    MMEngine names the logger, the message hub, the visualizer and the log folder after the second in which a run
    begins, the former after its config as well: two of one second would share log files, loss history and pictures.
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
    """Add hooks of this package that a run does not have yet, and log what each is for, by the name of its class."""
    present = {type(hook).__name__ for hook in runner.hooks}
    for hook, reason in reasons.items():
        if hook not in present:
            runner.register_hook(dict(type=f"mmrepmlp.{hook}"))
            runner.logger.info(f"{hook} is added: {reason}")
