# SPDX-License-Identifier: Apache-2.0
"""What was measured of networks in several runtimes, as a table and as a plot."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mmrepmlp.verbs.benchmark.compare import OURS, THEIRS
from mmrepmlp.verbs.benchmark.measure import SGEMM_SIDE, BenchmarkReport


@dataclass
class RuntimeMeasurement:
    """A network in a runtime.

    Attributes:
        network: ``mmpretrain``, ``mmrepmlp``, or ``sgemm`` for the reference, a matrix product in float32.
        runtime: Name of the runtime, or the library that computes the reference.
        batch: Number of images; None for the reference.
        milliseconds: Median time of a call.
        over_eager: Speed relative to this package's network in eager PyTorch, float32; None without that row.
        over_mmpretrain: Speed relative to mmpretrain's network in the same runtime; None without that row.
        error: Largest difference of an output from that of this package's network in eager PyTorch, float32, over its
            largest value; None for networks with different weights.
        peak_mib: Growth of the process's resident memory during a call; None where it cannot be measured.
        reason: Why nothing was measured; all figures are None then. None where something was.
    """

    network: str
    runtime: str
    batch: int | None
    milliseconds: float | None = None
    over_eager: float | None = None
    over_mmpretrain: float | None = None
    error: float | None = None
    peak_mib: float | None = None
    reason: str | None = None


class RuntimeBenchmark(BenchmarkReport):
    """Networks in several runtimes: rows of :class:`RuntimeMeasurement`."""

    def table(self) -> Table:
        """The benchmark as a table to print, with the reasons for what was not run below it."""
        caption = (
            "ms: median. x eager: speed over mmrepmlp's in eager float32. x mmpretrain: speed over mmpretrain's in the "
            "same runtime. error: largest difference from the output of mmrepmlp in eager float32, relative to its "
            f"largest value. MiB: what a call adds to the resident memory at its peak. sgemm: a float32 matrix product "
            f"of side {SGEMM_SIDE} by each of torch's two libraries, measured in between."
        )
        missing = [row for row in self.rows if row.reason]
        reasons = dict.fromkeys(f"{row.network}, {row.runtime}: {row.reason}" for row in missing)
        table = self.empty_table("\n".join([caption, *(["Not run:"] if missing else []), *reasons]))
        table.collapse_padding = True
        for column in ("network", "runtime"):
            table.add_column(column, no_wrap=True)
        for column in ("batch", "ms", "x eager", "x mmpretrain", "error", "MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            figures = (
                ("not run",)
                if row.reason
                else (
                    f"{row.milliseconds:.1f}",
                    "" if row.over_eager is None else f"{row.over_eager:.2f}",
                    "" if row.over_mmpretrain is None else f"{row.over_mmpretrain:.2f}",
                    "" if row.error is None else f"{row.error:.0e}",
                    "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
                )
            )
            table.add_row(row.network, row.runtime, "" if row.batch is None else str(row.batch), *figures)
        return table

    def plot(self, path: str | Path) -> None:
        """Draw the time per image as bars, one panel per batch size, as PNG."""
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if row.batch is not None]
        batches, runtimes = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("batch", "runtime"))
        networks = [name for name in (THEIRS, OURS) if name in {row.network for row in rows}]
        width = 0.8 / len(networks)
        figure = Figure(figsize=(6 * len(batches), 1.6 + 0.5 * len(runtimes)), layout="constrained")
        for panel, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches):
            for i, network in enumerate(networks):
                times = {r.runtime: r for r in rows if (r.network, r.batch) == (network, batch)}
                places = [runtimes.index(name) + width * (i - (len(networks) - 1) / 2) for name in times]
                lengths = [0 if row.reason else row.milliseconds / batch for row in times.values()]
                labels = ["not run" if row.reason else f"{ms:.1f}" for row, ms in zip(times.values(), lengths)]
                bars = panel.barh(places, lengths, height=0.95 * width, label=network)
                panel.bar_label(bars, labels, padding=2)
            panel.invert_yaxis()
            panel.margins(x=0.12)
            panel.set(yticks=range(len(runtimes)), yticklabels=runtimes, xlabel="ms per image", title=f"batch {batch}")
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        self.save_figure(figure, path)
