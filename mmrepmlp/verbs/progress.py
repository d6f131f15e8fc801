# SPDX-License-Identifier: Apache-2.0
"""What ``--progress`` leaves on the terminal: a bar, the metrics of each validation, the path of the log, warnings."""

import io
import logging
import os.path as osp
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from numbers import Real
from typing import TextIO

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import IterBasedTrainLoop, Runner
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SILENCE = 60  # seconds without a line after which one is printed where there is no terminal to draw a bar on

# How MMEngine's records below warnings begin: time - name - level, in color on a terminal.
INFORMATION = re.compile(r"\S+ \S+ - \S+ - (\x1b\[\d*m)*(INFO|DEBUG)\b")
# Warnings of the frameworks about their own code, in every run.
INTERNAL = ('"FileClient" will be', '"HardDiskBackend" is the', "The prefix is not set in metric class")


def add_progress(runner: Runner, name_log: bool = True) -> None:
    """Write a runner's log to its file alone, but for warnings, and have :func:`show_progress` show its progress."""
    for handler in terminal_handlers(runner.logger):
        handler.setStream(sys.stdout)
        handler.setLevel(max(handler.level, logging.WARNING))
        handler.addFilter(concerns_user)
    if is_main_process():
        runner.register_hook(ProgressHook(name_log), priority="LOWEST")


@contextmanager
def show_progress(runner: Runner) -> Iterator[None]:
    """Give the terminal to the :class:`ProgressHook` of a runner, if it has one."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, ProgressHook)), None)
    with hook.own_terminal(runner.logger) if hook else nullcontext():
        yield


class ProgressHook(Hook):
    """Show a bar for training, validation and test, and print the metrics of each validation and test.

    Where the output is no terminal there is no bar, but a line after :data:`SILENCE` seconds without one.

    Args:
        name_log: Whether to print the path of the log. Default: True.
    """

    def __init__(self, name_log: bool = True) -> None:
        self.name_log = name_log
        self.console = Console(file=sys.stdout)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            transient=True,
            redirect_stdout=False,
            disable=not self.console.is_terminal,
        )
        self.tasks = {}
        self.printed, self.iteration = time.monotonic(), 0

    @contextmanager
    def own_terminal(self, logger: MMLogger) -> Iterator[None]:
        """Show bars, print warnings above them, and write to the log what else is printed, e.g. by pycocotools."""
        handlers, stdout = terminal_handlers(logger), sys.stdout
        if not self.progress.disable:
            for handler in handlers:
                handler.setStream(FileProxy(self.console, stdout))
        try:
            with redirect_stdout(LogWriter(logger)), self.progress:
                yield
        finally:
            for handler in handlers:
                handler.setStream(stdout)

    def before_run(self, runner: Runner) -> None:
        """Say where the log is."""
        if self.name_log:
            self.print(f"log: {osp.relpath(osp.join(runner.log_dir, runner.timestamp + '.log'))}")

    def before_train(self, runner: Runner) -> None:
        """Begin with the iteration from which on a run is resumed."""
        self.iteration = runner.iter
        self.begin("train", runner.max_iters, runner.iter)

    def _after_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None, mode: str = "train"
    ) -> None:
        """Advance the bar."""
        loss = mean_loss(runner, 1) if mode == "train" else ""
        if mode in self.tasks:
            self.progress.update(self.tasks[mode], advance=1, loss=loss)
        if mode == "train" and self.progress.disable and time.monotonic() - self.printed > SILENCE:
            self.print_state(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Name the last checkpoint."""
        self.end("train")
        if checkpoint := runner.message_hub.get_info("last_ckpt"):
            self.print(f"checkpoint: {osp.relpath(checkpoint) if osp.exists(checkpoint) else checkpoint}")

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        """Add a bar for a validation or a test; that of the training goes on."""
        if mode != "train":
            self.begin(mode, len(getattr(runner, f"{mode}_dataloader")))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, object] | None = None) -> None:
        """Print the metrics."""
        self.end("val")
        self.print_state(runner, runner.iter, metrics)

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, object] | None = None) -> None:
        """Print the metrics."""
        self.end("test")
        self.print("  ".join(["test", *format_metrics(metrics)]))

    def begin(self, name: str, total: int, completed: int = 0) -> None:
        """Add a bar."""
        self.tasks[name] = self.progress.add_task(name, total=total, completed=completed, loss="")

    def end(self, name: str) -> None:
        """Remove a bar."""
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))

    def print_state(self, runner: Runner, iteration: int, metrics: Mapping[str, object] | None = None) -> None:
        """Print how far a training is, its mean loss since the last line, and metrics."""
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop) or metrics is None
        where = (
            f"iteration {iteration}/{runner.max_iters}" if by_iteration else f"epoch {runner.epoch}/{runner.max_epochs}"
        )
        loss = mean_loss(runner, iteration - self.iteration)
        self.iteration = iteration
        self.print("  ".join(filter(None, [where, loss, *format_metrics(metrics)])))

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.printed = time.monotonic()


def terminal_handlers(logger: MMLogger) -> list[logging.StreamHandler]:
    """The handlers that print."""
    return [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]


def concerns_user(record: logging.LogRecord) -> bool:
    """Whether a user can do something about a warning; the log file has the others."""
    return not any(notice in record.getMessage() for notice in INTERNAL)


class WithoutInformation(io.TextIOBase):
    """What stands for a terminal while a runner is built: all but the records of MMEngine's log below warnings."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.isatty, self.fileno, self.flush = stream.isatty, stream.fileno, stream.flush  # which colors depend on

    def write(self, text: str) -> int:
        """Pass on a record, or part of a line."""
        return len(text) if INFORMATION.match(text) else self.stream.write(text)


class LogWriter(io.TextIOBase):
    """A stream that logs each line that is written to it."""

    def __init__(self, logger: MMLogger) -> None:
        self.logger, self.line = logger, ""

    def write(self, text: str) -> int:
        """Log the lines that are complete."""
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.logger.info(line)
        return len(text)


def mean_loss(runner: Runner, iterations: int) -> str:
    """The mean training loss of the last iterations; empty where the model reports none."""
    losses = runner.message_hub.log_scalars.get("train/loss")
    return f"loss {losses.mean(iterations):.4f}" if losses is not None and iterations > 0 else ""


def format_metrics(metrics: Mapping[str, object] | None) -> Sequence[str]:
    """The metrics that are numbers, each with its name."""
    return [f"{name} {value:.4g}" for name, value in (metrics or {}).items() if isinstance(value, Real)]
