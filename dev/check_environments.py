# SPDX-License-Identifier: Apache-2.0
"""Set up environments of several Pythons, torches and stacks, run the fast tests in each, and write the table in docs.

Each combination of the options is set up in a temporary folder, tested, written to docs/environments.{csv,md} and
removed again. Rows of other combinations stay as they are.
"""

import argparse
import csv
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs/environments.csv"
COLUMNS = ("stack", "python", "torch", "mmengine", "mmcv", "numpy", "passed", "skipped", "failed", "date", "remark")
KEY = COLUMNS[:3]
VERSIONS = """
import importlib, json, platform
versions = {name: importlib.import_module(name).__version__ for name in ("torch", "mmengine", "mmcv", "numpy")}
print(json.dumps(versions | {"python": platform.python_version()}))
"""
# What needs neither compiled operators nor a second framework.
LITE_TESTS = (
    "tests/reparam",
    "tests/checkpoint",
    "tests/test_mmengine_compat.py",
    "tests/models/test_unbuilt_stages.py",
    *(f"tests/models/repmlpnet/test_{name}.py" for name in ("arguments", "block", "unit")),
    "tests/end_to_end/test_mmcv_lite.py",
)
HEADER = """<!-- SPDX-License-Identifier: Apache-2.0 -->
# Tested versions

Environments in which the fast tests (`make test-fast`) were run, on Linux. `dev/check_environments.py` sets each one up
with `tools/setup_env.sh`, tests it, and writes this page. `mmcv-lite` has no compiled operators: only the backbone,
checkpoints and classification are tested there. Tests of the export to ONNX need torch 2.6. Rows without a date are of
earlier versions of this package, with fewer tests.

"""


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def run(command: Sequence[str], log: Path, **variables: str) -> bool:
    """Run a command in the checkout, with its output in a file; returns whether it succeeded."""
    with log.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | variables)
    return done.returncode == 0


def set_up(python: str, torch: str, stack: str, venv: Path, log: Path) -> bool:
    if stack != "mmcv-lite":
        return run(["tools/setup_env.sh"], log, VENV=str(venv), PYTHON=python, TORCH=torch, STACK=stack)
    # In an empty environment, the commands as the page has them; then what the tests need.
    _, _, section = (ROOT / "docs/installation.md").read_text().partition("## Without compiled operators")
    commands = section.split("```bash\n")[1].split("```")[0]
    torches = f"torch=={torch} torchvision" if torch else "-r requirements/torch.txt"
    typed = f"set -e\npip install {torches}\n{commands}pip install -e '.[dev]'"
    return run([python, "-m", "venv", str(venv)], log) and run(
        ["bash", "-c", typed], log, PATH=f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    )


def reason(log: Path) -> str:
    """The error that a log ends with."""
    lines = log.read_text().strip().splitlines() or ["no output"]
    errors = [line for line in lines if re.match(r"(ERROR|error|setup|\w+Error): ", line)]
    return (errors or lines)[-1][:120]


def count(report: Path) -> dict[str, int]:
    """Numbers of tests in a JUnit report; an error in a fixture counts as a failure."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    tests, skipped, failed = (int(suite.get(name)) for name in ("tests", "skipped", "failures"))
    failed += int(suite.get("errors"))
    return dict(passed=tests - skipped - failed, skipped=skipped, failed=failed)


def try_environment(python: str, torch: str, stack: str, logs: Path) -> dict[str, object]:
    """Set up one environment, test it, and remove it.

    Returns:
        The row of the table. Where the set-up fails it has what was asked for, and the last line of the log.
    """
    asked = subprocess.check_output([python, "-c", "import platform; print(platform.python_version())"], text=True)
    row: dict[str, object] = dict(stack=stack, python=asked.strip(), torch=torch or "reference", date=date.today())
    name = f"{stack}-python{asked.strip()}-torch{torch or ''}"
    with tempfile.TemporaryDirectory(prefix="mmrepmlp-environment-") as folder:
        venv, report = Path(folder, "venv"), Path(folder, "report.xml")
        if not set_up(python, torch, stack, venv, logs / f"{name}-setup.log"):
            return row | dict(remark=f"not set up: {reason(logs / f'{name}-setup.log')}")
        versions = subprocess.check_output([venv / "bin/python", "-W", "ignore", "-c", VERSIONS], text=True, cwd=folder)
        row |= json.loads(versions.splitlines()[-1])
        selected = LITE_TESTS if stack == "mmcv-lite" else ()
        parallel = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")  # as in the Makefile
        pytest = (venv / "bin/python", "-m", "pytest", *parallel, "-m", "not slow", f"--junitxml={report}")
        run(list(map(str, (*pytest, *selected))), logs / f"{name}-tests.log", OMP_NUM_THREADS="1")
        return row | (count(report) if report.exists() else dict(remark="the tests did not start"))


def read_table() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(rows: list[dict[str, object]]) -> None:
    """Write the CSV and the page, sorted by stack, Python and torch."""

    def order(row: dict) -> tuple:
        numbers = ([int(part) for part in row[name].split("+")[0].split(".") if part.isdigit()] for name in KEY[1:])
        return row["stack"] != "openmmlab", row["stack"], *numbers

    rows = sorted(rows, key=order)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([str(row.get(name) or "") for name in COLUMNS] for row in read_table())]
    TABLE.with_suffix(".md").write_text(HEADER + "".join(f"| {' | '.join(line)} |\n" for line in lines))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters to try; default: this one")
    parser.add_argument(
        "--torch", nargs="+", default=[""], help="versions of torch; default: the one in requirements/torch.txt"
    )
    parser.add_argument(
        "--stack", nargs="+", default=["openmmlab", "onedl"], choices=["openmmlab", "onedl", "mmcv-lite"]
    )
    parser.add_argument("--logs", type=Path, default=ROOT / "work_dirs/environments", help="folder of the logs")
    args = parser.parse_args(arguments)
    args.logs.mkdir(parents=True, exist_ok=True)
    write_table(read_table())  # other pages lead to it
    combinations = list(itertools.product(args.python, args.torch, args.stack))
    for index, combination in enumerate(combinations, 1):
        started = time.monotonic()
        say(f"{index}/{len(combinations)}: {' '.join(filter(None, combination))}")
        row = try_environment(*combination, args.logs)
        others = [other for other in read_table() if any(other[name] != row[name] for name in KEY)]
        write_table([*others, row])
        say(f"{row} after {time.monotonic() - started:.0f} s")
    say(f"logs in {args.logs}, table in {TABLE.with_suffix('.md')}")


if __name__ == "__main__":
    main()
