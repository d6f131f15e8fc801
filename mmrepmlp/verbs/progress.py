# SPDX-License-Identifier: Apache-2.0
"""``--progress``: print a progress bar, metrics, the path of the log file and warnings instead of the log."""

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

SILENCE = 60  # seconds after which a line is printed, where the output is not a terminal that can show a bar

# Start of MMEngine's log records below warnings: time - name - level, in color on a terminal.
INFORMATION = re.compile(r"\S+ \S+ - \S+ - (\x1b\[\d*m)*(INFO|DEBUG)\b")
# Warnings of the frameworks about their own code, raised in every run.
INTERNAL = ('"FileClient" will be', '"HardDiskBackend" is the', "The prefix is not set in metric class")


def add_progress(runner: Runner, name_log: bool = True) -> None:
    """Send a runner's log only to its file, except for warnings, and add the hook for :func:`show_progress`."""
    for handler in terminal_handlers(runner.logger):
        handler.setStream(sys.stdout)
        handler.setLevel(max(handler.level, logging.WARNING))
        handler.addFilter(concerns_user)
    if is_main_process():
        runner.register_hook(ProgressHook(name_log), priority="LOWEST")


@contextmanager
def show_progress(runner: Runner) -> Iterator[None]:
    """Let the :class:`ProgressHook` of a runner, if it has one, control the terminal."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, ProgressHook)), None)
    with hook.control_terminal(runner.logger) if hook else nullcontext():
        yield


class ProgressHook(Hook):
    """Show a bar for training, validation and test, and print the metrics of each validation and test.

    If the output is not a terminal, print a line after :data:`SILENCE` seconds without one instead of a bar.

    Args:
        name_log: Whether to print the path of the log file. Default: True.
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
    def control_terminal(self, logger: MMLogger) -> Iterator[None]:
        """Show bars, print warnings above them, and redirect other output, e.g. of pycocotools, to the log."""
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
        """Print the path of the log file."""
        if self.name_log:
            self.print(f"log: {osp.relpath(osp.join(runner.log_dir, runner.timestamp + '.log'))}")

    def before_train(self, runner: Runner) -> None:
        """Start the bar at the iteration from which training resumes."""
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
        """Print the path of the last checkpoint."""
        self.end("train")
        if checkpoint := runner.message_hub.get_info("last_ckpt"):
            self.print(f"checkpoint: {osp.relpath(checkpoint) if osp.exists(checkpoint) else checkpoint}")

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        """Add a bar for a validation or test, below that of training."""
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
        """Print the iteration or epoch, the mean loss since the last line, and metrics."""
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop) or metrics is None
        step = (
            f"iteration {iteration}/{runner.max_iters}" if by_iteration else f"epoch {runner.epoch}/{runner.max_epochs}"
        )
        loss = mean_loss(runner, iteration - self.iteration)
        self.iteration = iteration
        self.print("  ".join(filter(None, [step, loss, *format_metrics(metrics)])))

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.printed = time.monotonic()


def terminal_handlers(logger: MMLogger) -> list[logging.StreamHandler]:
    """Return the handlers that print to the terminal."""
    return [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]


def concerns_user(record: logging.LogRecord) -> bool:
    """Whether a user can act on a warning; the log file has the others."""
    return not any(notice in record.getMessage() for notice in INTERNAL)


class InfoFilter(io.TextIOBase):
    """Stream that drops MMEngine's log records below warnings, used in place of stdout while a runner is built."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.isatty, self.fileno, self.flush = stream.isatty, stream.fileno, stream.flush  # colors depend on these

    def write(self, text: str) -> int:
        """Pass on a record or part of a line, unless it is information."""
        return len(text) if INFORMATION.match(text) else self.stream.write(text)


class LogWriter(io.TextIOBase):
    """Stream that logs each line written to it."""

    def __init__(self, logger: MMLogger) -> None:
        self.logger, self.line = logger, ""

    def write(self, text: str) -> int:
        """Log all complete lines."""
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.logger.info(line)
        return len(text)


def mean_loss(runner: Runner, iterations: int) -> str:
    """Format the mean training loss of the last iterations; empty if the model reports none."""
    losses = runner.message_hub.log_scalars.get("train/loss")
    return f"loss {losses.mean(iterations):.4f}" if losses is not None and iterations > 0 else ""


def format_metrics(metrics: Mapping[str, object] | None) -> Sequence[str]:
    """Format the metrics that are numbers, each with its name."""
    return [f"{name} {value:.4g}" for name, value in (metrics or {}).items() if isinstance(value, Real)]
