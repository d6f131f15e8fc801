# SPDX-License-Identifier: Apache-2.0
"""Measure how long commands take to start, beside the frameworks' own: whole processes that take turns."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.progress import track

from dev.command import make_parser, measure_and_report
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.hardware import Hardware
from mmrepmlp.verbs.benchmark.networks import OURS
from mmrepmlp.verbs.benchmark.report import BenchmarkReport

CONFIGS = Path(__file__).parents[1] / "configs"
FRAMEWORKS = "frameworks"
IMPORT, TOP_LEVEL, HELP, FIRST_ITERATION = "import", "import, top level alone", "--help", "train, {}"
LOGGED = "(train)"  # in the log line of an iteration
TRAININGS = {
    "mmpretrain": "repmlpnet/repmlpnet-mini_1xb64_digits-64px.py",
    "mmseg": "upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py",
    "mmdet": "retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py",
}


@dataclass(frozen=True)
class Start:
    """A command to time: until its output has a text, or until it ends."""

    arguments: Sequence[str]
    until: str = ""

    def run(self) -> float:
        """Run the command in a folder of its own and return the seconds it took.

        Raises:
            MMRepMLPError: It failed, or ended before its output had the text.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = [part.format(folder=folder) for part in self.arguments]
            start, lines = time.perf_counter(), []
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                for line in process.stdout:
                    lines.append(line)
                    if self.until and self.until in line:
                        seconds = time.perf_counter() - start
                        process.kill()
                        return seconds
                code = process.wait()
                seconds = time.perf_counter() - start
        if code or self.until:
            raise MMRepMLPError(f"{' '.join(command)} ended with exit code {code}:\n{''.join(lines[-20:])}")
        return seconds


def starts(frameworks: Sequence[str]) -> dict[tuple[str, str], Start]:
    """Return the commands, by who provides them and task: imports, help, and trainings up to the first iteration."""
    python, ours = sys.executable, [sys.executable, "-m", "mmrepmlp"]
    commands = {
        (FRAMEWORKS, TOP_LEVEL): Start([python, "-c", "import mmengine, mmcv"]),
        (FRAMEWORKS, IMPORT): Start([python, "-c", "import mmengine.runner, mmcv"]),
        (OURS, IMPORT): Start([python, "-c", "import mmrepmlp"]),
        (OURS, HELP): Start([*ours, "--help"]),
    }
    for framework in frameworks:
        tool = Path(find_spec(framework).origin).parent / ".mim/tools/train.py"
        more = [str(CONFIGS / TRAININGS[framework]), "--work-dir", "{folder}"]
        more += ["--cfg-options", "default_hooks.logger.interval=1", "model.backbone.init_cfg=None"]
        task = FIRST_ITERATION.format(framework)
        commands[FRAMEWORKS, task] = Start([python, str(tool), *more], LOGGED)
        commands[OURS, task] = Start([*ours, "train", *more], LOGGED)
    return commands


def measure_starts(frameworks: Sequence[str] = tuple(TRAININGS), repeats: int = 7) -> BenchmarkReport:
    """Run the commands in turns, after one that is not counted.

    Args:
        frameworks: Frameworks whose training tool to compare with. Default: mmpretrain, mmseg and mmdet.
        repeats: Timed runs of each command. Default: 7.

    Returns:
        A row for each command, with the median.

    Raises:
        MMRepMLPError: A command fails.
    """
    commands = starts(frameworks)
    seconds = {key: [] for key in commands}
    for turn in track(range(1 + repeats), "commands", transient=True):
        for key, command in commands.items():
            elapsed = command.run()
            seconds[key] += [elapsed] if turn else []
    rows = [
        dict(model=model, task=task, milliseconds=1e3 * statistics.median(times))
        for (model, task), times in seconds.items()
    ]
    return BenchmarkReport(dict(repeats=repeats, **Hardware().environment()), rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--frameworks", nargs="+", choices=[*TRAININGS], help="default: all")
    parser.add_argument("--repeats", type=int, help="timed runs of each command (default: 7)")
    measure_and_report(parser, measure_starts)


if __name__ == "__main__":
    main()
