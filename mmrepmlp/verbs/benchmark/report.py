# SPDX-License-Identifier: Apache-2.0
"""What a benchmark measured, as a table and as JSON."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from mmrepmlp.checkpoint import atomic_write

from .measure import SGEMM_SIDE

# Figures of a row: their heading in the table, how they are printed, and what they are.
COLUMNS = {
    "model": ("model", "{}", ""),
    "task": ("task", "{}", ""),
    "batch": ("batch", "{}", ""),
    "milliseconds": ("ms", "{:.1f}", "median"),
    "over_eager": ("x eager", "{:.2f}", "speed over mmrepmlp's in eager float32"),
    "speedup": ("ratio", "{:.2f}", "speed over mmpretrain's at the same task"),
    "gflops": ("GFLOP/s", "{:.0f}", "arithmetic of the deploy form, per second"),
    "sgemm_share": (
        "sgemm",
        "{:.0%}",
        f"share of the rate of a matrix product of side {SGEMM_SIDE}, measured in between, by the faster of torch's "
        "two libraries",
    ),
    "error": (
        "error",
        "{:.0e}",
        "largest difference of an output from the training form's in eager mode (of mmpretrain's if it is measured as "
        "well), relative to its largest value",
    ),
    "peak_mib": ("MiB", "{:.0f}", "what a call adds to the memory in use at its peak"),
    "megabytes": ("MB", "{:.2f}", "size of the graph and its weights"),
    "metric": ("metric", "{}", ""),
    "before": ("PyTorch", "{:.2f}", "metric of the PyTorch model when it was deployed, in points"),
    "after": ("deployed", "{:.2f}", "that of the graph"),
    "drop": ("drop", "{:.2f}", ""),
}


@dataclass
class BenchmarkReport:
    """What was measured, and the environment in which it was.

    Attributes:
        environment: What the measurements depend on, by name.
        rows: Figures by the names of :data:`COLUMNS`, further ones are metrics; a list has one value for each seed.
            None or missing where there is none. Where nothing could be measured, ``reason`` says why.
    """

    environment: dict[str, object]
    rows: list[dict[str, object]]

    def save_json(self, path: str | Path) -> None:
        """Write environment and rows as JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> "BenchmarkReport":
        """Read what :meth:`save_json` wrote."""
        return cls(**json.loads(Path(path).read_text()))

    def table(self) -> Table:
        """The benchmark as a table to print, with what the figures are, and why some are missing, below it."""
        given = {name for row in self.rows for name, value in row.items() if value is not None} - {"reason"}
        given.add("milliseconds")
        order = dict.fromkeys(name for row in self.rows for name in row)
        metrics = {name: (name.rpartition("/")[2], "{:.4g}", "") for name in order if name in given - set(COLUMNS)}
        columns = {name: column for name, column in (COLUMNS | metrics).items() if name in given}
        reasons = dict.fromkeys(f"{r['model']}, {r['task']}: {r['reason']}" for r in self.rows if r.get("reason"))
        caption = " ".join(f"{heading}: {meaning}." for heading, _, meaning in columns.values() if meaning)
        table = Table(
            title="\n".join(f"{name}: {value}" for name, value in self.environment.items()),
            title_justify="left",
            caption="\n".join([caption, *(["Not run:"] if reasons else []), *reasons]),
            caption_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
            collapse_padding=True,
        )
        for name, (heading, _, _) in columns.items():
            table.add_column(heading, justify="left" if name in ("model", "task") else "right", no_wrap=True)
        for row in self.rows:
            cells = {
                name: format_figure(row[name], form)
                for name, (_, form, _) in columns.items()
                if row.get(name) is not None
            }
            if row.get("reason"):
                cells["milliseconds"] = "not run"
            table.add_row(*(cells.get(name, "") for name in columns))
        return table


def format_figure(value: object, form: str) -> str:
    """A figure as text; of several seeds the mean and, where there are at least two, the standard deviation."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        return form.format(value)
    deviation = f" ± {statistics.stdev(value):.2f}" if len(value) > 1 else ""
    return f"{statistics.fmean(value):.2f}{deviation}"
