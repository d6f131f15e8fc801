# SPDX-License-Identifier: Apache-2.0
"""Fill the tables of the documentation, and draw its chart, from the stored results.

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->`` of a page, where NAME is one of
:data:`TABLES`.
"""

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from dev.breakdown import PARTS, REST
from dev.end_to_end import ALONE, FILES, FIRST, SHARE
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.networks import OURS, THEIRS
from mmrepmlp.verbs.benchmark.report import COLUMNS, BenchmarkReport, format_figure
from mmrepmlp.verbs.benchmark.runtimes import DEPLOY

ROOT = Path(__file__).parents[1]
RESULTS, CHART = ROOT / "docs/results", ROOT / "docs/images/image_sizes.png"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Columns that tell what was measured: rows that agree in them are of the same thing.
IDENTITY = ("arch", "model", "task", "batch", "processor")


@dataclass(frozen=True)
class Table:
    """A table of the documentation.

    Attributes:
        results: Names of the stored results, whose rows stand below each other.
        columns: Columns, by the names in the rows or in the environment; with their headings.
        beside: A column with the name of a network or setting: rows that differ in it become one, with the figures of
            each side by side. Default: None.
        figures: These figures; of the other columns the last row's count. Default: none.
        where: Values that rows must have, by column. Default: none.
    """

    results: Sequence[str]
    columns: Mapping[str, str]
    beside: str | None = None
    figures: Sequence[str] = ()
    where: Mapping[str, Sequence[object]] = field(default_factory=dict)


SIZES = {"parameters, training form": "parameters, training form", "parameters, deploy form": "deploy form"}
TIMES = {"ms, training form": "ms, training form", "ms, deploy form": "deploy form"}
FORMS = {"arch": "network", "task": "task", "batch": "batch", "speedup": "speed-up", "error": "largest error"}
BY_RUNTIME = {"task": "runtime", "batch": "batch", "speedup": "speed-up", "over_eager": "over eager", "error": "error"}
SHARES = {"arch": "network", "size": "size", "batch": "batch", "milliseconds": "ms", "at peak": "at peak, %"}
PER_MEGAPIXEL = ("ms per megapixel", "MiB per megapixel")
TOP1 = {"accuracy/top1": "top-1, %"}
TABLES = {
    "deploy": Table(
        ("compare_b224", "compare_t224", "compare_b224_zen4", "compare_t224_zen4"),
        {"arch": "deploy form", "batch": "batch", "error": "largest error"},
        "processor",
        ("milliseconds", "speedup"),
        {"task": [DEPLOY], "model": [OURS]},
    ),
    "forms": Table(
        ("compare_b224_zen4", "training_step_b224", "compare_t224_zen4", "training_step_t224"),
        FORMS,
        "model",
        ("milliseconds", "peak_mib"),
        {"model": [THEIRS, OURS]},
    ),
    "runtimes": Table(
        ("runtimes_b224_batch1", "runtimes_b224_batch8"),
        BY_RUNTIME,
        "model",
        ("milliseconds",),
        {"model": [THEIRS, OURS]},
    ),
    "segmentor": Table(
        ("runtimes_upernet_d256",),
        {"task": "runtime", "milliseconds": "ms", "over_eager": "over eager", "error": "error", "peak_mib": "MiB"},
        where={"model": [OURS]},
    ),
    "gpu": Table(
        ("training_step_h100", "training_step_h100_bfloat16"),
        {"model": "network"},
        "autocast",
        ("milliseconds", "speedup", "peak_mib"),
        {"batch": [64]},
    ),
    "breakdown": Table(("breakdown_b224", "breakdown_t224"), SHARES | {part: f"{part}, %" for part in (*PARTS, REST)}),
    "image_sizes": Table(
        ("image_sizes_d256",),
        {
            "size": "size",
            "milliseconds": "ms",
            "ms per megapixel": "",
            "MiB per megapixel": "",
            "at peak": "at peak, %",
        },
    ),
    "ablation": Table(("ablation_sheets",), {"network": "network"} | TOP1),
    "digits": Table(
        ("ablation_digits", "ablation_digits_norm1", "ablation_digits_fc3"),
        {"config": "config", "model.backbone.fc3_norm_init": "`fc3_norm_init`", "network": "network"} | TOP1,
    ),
    "tile_sizes": Table(("tile_sizes_digits",), {"form": "checkpoint", "side": "image, pixels"} | TOP1),
    "pad_modes": Table(("pad_modes_scenes",), {"pad_mode": "`pad_mode`", "mIoU": "mIoU, %"}),
    "convs": Table(("convs_digits",), {"config": "config"} | TOP1 | SIZES | TIMES),
    "gradient_reparam_sheets": Table(
        ("gradient_reparam_sheets",),
        {"config": "config"} | TOP1 | {"int8 accuracy/top1": "int8"} | SIZES | TIMES,
    ),
    "gradient_reparam_scenes": Table(
        ("gradient_reparam_scenes",),
        {"config": "config", "mIoU": "mIoU, %", "int8 mIoU": "int8"} | SIZES | TIMES,
    ),
    "compression": Table(
        ("compression_sheets",),
        {"network": "network", "method": "method"}
        | TOP1
        | {name: name for name in ("MACs, %", "weights not 0", "weights, kB", "compressed, kB")}
        | {"ms, eager": "eager, ms", "ms, openvino": "OpenVINO, ms"},
    ),
    "training_costs": Table(
        ("training_costs_t224",),
        {"model": "training step", "batch": "batch", "milliseconds": "ms", "peak_mib": "MiB"},
    ),
    "end_to_end": Table(
        ("end_to_end",), {"model": "program", "task": "network"} | {name: name for name in (FILES, ALONE, SHARE, FIRST)}
    ),
    "startup": Table(("startup",), {"task": "command"}, "model", ("milliseconds",)),
    "precisions": Table(
        ("precisions",),
        {"model": "network", "task": "graph", "metric": "metric"}
        | {"before": "PyTorch", "after": "deployed", "drop": "drop", "megabytes": "MB"},
    ),
}
# How figures of other names than those of the benchmark are printed.
FORMATS = {"weights not 0": "{:,.0f}", "weights, kB": "{:,.0f}", "compressed, kB": "{:,.0f}", "MACs, %": "{:.0f}"}
FORMATS |= (
    {name: "{:,}" for name in SIZES}
    | {name: "{:.2f}" for name in TIMES}
    | {f"ms, {name}": "{:.2f}" for name in ("eager", "openvino")}
)
FORMATS |= {name: "{:.0f}" for name in (*PER_MEGAPIXEL, SHARE)} | {
    name: "{:.1f}" for name in (*PARTS, REST, "at peak", FILES, ALONE, FIRST)
}
RUNTIMES = ("onnxruntime", "openvino", "nncf")
# What of the environment stands below a table; results of one table agree in all that is not among the first.
SETTINGS = {"arch", "form", "autocast", "tf32", "repeats", "config"}
PHRASES = {
    "dtype": "{}",
    "threads": "{} threads",
    "gpu": "{}",
    "processor": "{}",
    "vectors": "with {}",
    "torch": "torch {}",
    "onnxruntime": "ONNX Runtime {}",
    "openvino": "OpenVINO {}",
    "seeds": "seeds {}",
    "date": "{}",
}


def render(table: Table) -> str:
    """Write a table in Markdown, with the environment below it.

    Raises:
        MMRepMLPError: The results come from different environments.
    """
    reports = [BenchmarkReport.read(RESULTS / f"{name}.json") for name in table.results]
    rows = [{**report.environment, **row} for report in reports for row in report.rows]
    rows = [row for row in rows if all(row.get(name) in values for name, values in table.where.items())]
    columns = dict(table.columns) or {name: name for row in reports[0].rows for name in row}
    if table.beside:
        columns, rows = put_beside(columns, rows, table)
    columns = {name: heading for name, heading in columns.items() if any(row.get(name) is not None for row in rows)}
    rule = ["---" if any(isinstance(row.get(name), str) for row in rows) else "---:" for name in columns]
    lines = [list(columns.values()), rule, *([cell(name, row.get(name)) for name in columns] for row in rows)]
    below = caption(table, reports)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{below}\n"


def put_beside(columns: dict[str, str], rows: list[dict], table: Table) -> tuple[dict[str, str], list[dict]]:
    """Make one row of those that differ in a column alone, with the figures of each."""
    wide: dict[tuple, dict] = {}
    added: dict[str, str] = {}
    for figure in table.figures:
        for row in rows:
            side = str(row.get(table.beside) or row["dtype"])
            added[f"{side}, {figure}"] = f"{side}, {COLUMNS[figure][0]}"
            merged = wide.setdefault(tuple(row.get(name) for name in IDENTITY if name != table.beside), {})
            merged |= {**row, f"{side}, {figure}": row.get(figure)}
    first = {name: heading for name, heading in columns.items() if name in IDENTITY}
    return first | added | {name: heading for name, heading in columns.items() if name not in IDENTITY}, [
        *wide.values()
    ]


def cell(name: str, value: object) -> str:
    """A figure as it is printed; nothing where it was not measured."""
    figure = name.rpartition(", ")[2] if name not in FORMATS else name
    form = FORMATS.get(figure) or COLUMNS.get(figure, ("", "{:.4g}"))[1]
    return "" if value is None else format_figure(value, form)


def caption(table: Table, reports: Sequence[BenchmarkReport]) -> str:
    """The environment of the results of a table, which has to be one but for what the table shows."""
    shown = SETTINGS | {*table.columns, table.beside}
    if "processor" in shown:
        shown |= {"vectors", "features", "date", *RUNTIMES}
    used = str([report.rows for report in reports])
    shown |= {name for name in RUNTIMES if name not in used}
    environments = [
        {name: value for name, value in report.environment.items() if name not in shown and "." not in name}
        for report in reports
    ]
    if any(environment != environments[0] for environment in environments):
        raise MMRepMLPError(
            f"{', '.join(table.results)} were measured in different environments, which one table would hide. Measure "
            "them anew on one machine."
        )
    parts = [form.format(text(environments[0][name])) for name, form in PHRASES.items() if name in environments[0]]
    repeats = sorted({report.environment["repeats"] for report in reports if "repeats" in report.environment})
    calls = f"; medians of {' or '.join(map(str, repeats))} interleaved calls" if repeats else ""
    line = f"{', '.join(parts)}{calls}.".replace(", with", " with").replace("1 threads", "1 thread")
    return textwrap.fill(line, 120)


def text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def fill(page: str) -> str:
    """Replace the marked tables of a page."""
    return MARKED.sub(lambda found: f"{found[1]}\n{render(TABLES[found[2]])}\n{found[3]}", page)


def draw_sizes(path: str | Path = CHART) -> None:
    """Draw what a megapixel takes in images of several sizes."""
    rows = BenchmarkReport.read(RESULTS / "image_sizes_d256.json").rows
    sides = [int(row["size"].partition("x")[0]) for row in rows]
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), PER_MEGAPIXEL):
        axis.plot(sides, [row[name] for row in rows], marker="o")
        axis.set(title=name, xlabel="side of the image, pixels", xscale="log", ylim=(0, None))
        axis.set_xticks(sides, map(str, sides), rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        page = path.read_text()
        if (filled := fill(page)) != page:
            path.write_text(filled)
            print(path.relative_to(ROOT))
    draw_sizes()


if __name__ == "__main__":
    main()
