# SPDX-License-Identifier: Apache-2.0
"""Try the backbone in every family of configs, each in a process of its own, and keep a table."""

import argparse
import csv
import io
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich import box
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table

from mmrepmlp.checkpoint import atomic_write

from .families import PACKAGES, find_families
from .trial import STEPS, Trial, run_trial

OPENMMLAB = ("mmengine", "mmcv", "mmcv-lite", "mmpretrain", "mmsegmentation", "mmdet")
ONEDL = ("onedl-mmengine", "onedl-mmcv", "onedl-mmpretrain", "onedl-mmsegmentation", "onedl-mmdetection")
VERSIONED = ("mmrepmlp", "torch", *OPENMMLAB, *ONEDL)
HEADING = """<!-- SPDX-License-Identifier: Apache-2.0 -->
# Compatibility

The backbone in one config of each family of the installed frameworks: `python -m dev.sweep.sweep_configs`. A small
RepMLPNet takes the place of the config's backbone, and the channels of neck and heads are set as the explained errors
advise. [{csv}]({csv}) lists each family: its config, what passed, the error, and the reason of a failure.

- **Control**: with its own backbone the config builds, predicts and gives a loss on random images. Of up to three
  configs of a family, the first that does counts. Where none does, most need a package, weights or a GPU.
- **Train**: a loss, and gradients in the backbone.
- **Convert**: the outputs stay the same, and what is built from the written files predicts the same.
- **Export**: the ONNX graph computes the same: of the whole model, or of the backbone's feature maps.

{versions}.

"""
FAILED = """
Families that work with their own backbone and not with this one; most expect more than four feature maps, the tokens of
a transformer, or several branches:

| config | first step that fails |
| --- | --- |
"""
# What every trial imports, once for all.
PRELOADED = ["dev.sweep.trial", "mmpretrain.models", "mmseg.models", "mmdet.models", "onnxruntime"]


@dataclass
class Sweep:
    """Trials of families of configs.

    Attributes:
        trials: One for each family.
    """

    trials: list[Trial]

    def failures(self) -> list[Trial]:
        """Families that work with their own backbone and do not with ours."""
        return [t for t in self.trials if t.control == "pass" and "fail" in (t.train, t.convert, t.export)]

    def count_passed(self, package: str) -> list[int]:
        """How many families of a package passed each step."""
        trials = [t for t in self.trials if t.package == package]
        return [sum(getattr(t, step) not in ("fail", "-") for t in trials) for step in STEPS]

    def table(self) -> Group:
        """Numbers of families by package and step, and what failed, to print."""
        counts = Table(title="Families of configs", title_justify="left", box=box.SIMPLE)
        for column in ("package", "families", *STEPS):
            counts.add_column(column, justify="left" if column == "package" else "right")
        for package, number in Counter(t.package for t in self.trials).items():
            counts.add_row(package, str(number), *map(str, self.count_passed(package)))
        reasons = Table(box=box.SIMPLE)
        for column in ("family", "reason"):
            reasons.add_column(column)
        for trial in self.failures():
            reasons.add_row(f"{trial.package} {trial.family}", trial.reason)
        return Group(counts, reasons) if self.failures() else Group(counts)

    def to_csv(self) -> str:
        """One row for each family."""
        file = io.StringIO()
        writer = csv.DictWriter(file, [field.name for field in fields(Trial)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(trial) for trial in self.trials)
        return file.getvalue()

    def to_markdown(self, table: str) -> str:
        """A page: versions, numbers, what failed, and where the whole table is."""
        lines = ["| package | families | " + " | ".join(STEPS) + " |", "| --- |" + " ---: |" * (1 + len(STEPS))]
        for package, number in Counter(t.package for t in self.trials).items():
            lines.append(f"| {package} | {number} | " + " | ".join(map(str, self.count_passed(package))) + " |")
        page = HEADING.format(csv=table, versions=", ".join(versions())) + "\n".join(lines) + "\n"
        rows = (f"| {trial.config} | " + trial.reason.replace("|", "\\|") + " |" for trial in self.failures())
        return page + FAILED + "\n".join(rows) + "\n" if self.failures() else page


def sweep_configs(
    out: str | Path,
    packages: Sequence[str] = PACKAGES,
    families: Sequence[str] = (),
    timeout: float = 300.0,
    jobs: int = 2,
    restart: bool = False,
) -> Sweep:
    """Try the backbone in one config of each family of the installed frameworks.

    Each config builds, predicts and gives a loss with its own backbone first. Then a small RepMLPNet takes its place,
    and the model trains a step, is converted, and exported. An interrupted sweep goes on where it was.

    Args:
        out: CSV file to write; a Markdown file of the same name is written beside it. Families that it has are not
            tried again.
        packages: Packages with configs. Default: mmpretrain, mmseg and mmdet.
        families: Names of the families to try. Default: all.
        timeout: Seconds after which a trial counts as failed. Default: 300.
        jobs: Number of trials at a time, each in one thread. Default: 2.
        restart: Whether to try all families again. Default: False.

    Returns:
        All trials, including those that the file had.

    Raises:
        ValueError: A family does not exist, or no package has configs.
    """
    out = Path(out)
    known = {} if restart or not out.exists() else {(t.package, t.family): t for t in read_trials(out)}
    found = {(package, name): files for package in packages for name, files in find_families(package).items()}
    unknown = sorted(set(families) - {name for _, name in found}) if families else []
    if unknown or not found:
        raise ValueError(
            f"No configs of {', '.join(unknown) or 'any family'} in {', '.join(packages)}: expected names of folders "
            f"with configs in installed packages, e.g. in {', '.join(PACKAGES)}."
        )
    todo = [key for key in found if key not in known and (not families or key[1] in families)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def run(key: tuple[str, str]) -> Trial:
        return run_in_process(context, key, found[key], timeout, out.with_suffix(".log"))

    with ThreadPoolExecutor(jobs) as pool:
        for future in track(as_completed([pool.submit(run, key) for key in todo]), "families of configs", len(todo)):
            trial = future.result()
            known[trial.package, trial.family] = trial
            sweep = Sweep([known[key] for key in sorted(known)])
            for path, text in ((out, sweep.to_csv()), (out.with_suffix(".md"), sweep.to_markdown(out.name))):
                with atomic_write(path) as file:
                    file.write_text(text)
    return Sweep([known[k] for k in sorted(known)])


def run_in_process(
    context: multiprocessing.context.BaseContext, key: tuple[str, str], files: Sequence[Path], timeout: float, log: Path
) -> Trial:
    """Run a trial in a process of its own, which may crash or hang; its output goes to a log file."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_trial, args=(sender, key, files, log), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        return Trial(*key, control="fail", reason=f"no result after {timeout:.0f} seconds")
    except EOFError:
        process.join()
        return Trial(*key, control="fail", reason=f"the process ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def send_trial(sender: Connection, key: tuple[str, str], files: Sequence[Path], log: Path) -> None:
    """Run a trial and send it."""
    with log.open("a") as file, TemporaryDirectory() as folder:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        torch.set_num_threads(1)
        sender.send(run_trial(*key, files, Path(folder)))


def read_trials(path: Path) -> list[Trial]:
    """The trials in a CSV file."""
    with path.open(newline="") as file:
        return [Trial(**row) for row in csv.DictReader(file)]


def versions() -> list[str]:
    """Names and versions of the packages involved."""
    found = []
    for package in VERSIONED:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("out", help="CSV file to write, and a Markdown file beside it; a file that exists is completed")
    parser.add_argument("--packages", nargs="+", help="packages with configs (default: mmpretrain mmseg mmdet)")
    parser.add_argument("--families", nargs="+", help="names of families (default: all)")
    parser.add_argument("--timeout", type=float, help="seconds for one family (default: 300)")
    parser.add_argument("--jobs", type=int, help="number of families at a time, one thread each (default: 2)")
    parser.add_argument("--restart", action="store_true", help="try families again that the file has")
    Console().print(sweep_configs(**vars(parser.parse_args())).table())


if __name__ == "__main__":
    main()
