# SPDX-License-Identifier: Apache-2.0
"""What an image costs by its size: time and memory per megapixel."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from mmrepmlp.checkpoint import atomic_write
from mmrepmlp.models import RepMLPNet

from .benchmark import environment, interleave, peak_memory

FORMS = ("training form", "deploy form")


@dataclass
class SizeMeasurement:
    """A forward pass of one square image.

    Attributes:
        form: ``training form`` or ``deploy form``.
        side: Side of the image in pixels.
        milliseconds: Median time.
        peak_mib: Growth of the process's resident memory in MiB; None where it cannot be measured.
    """

    form: str
    side: int
    milliseconds: float
    peak_mib: float | None

    @property
    def megapixels(self) -> float:
        return self.side**2 / 1e6


@dataclass
class SizeBenchmark:
    """A sweep over image sizes and what it was measured on."""

    environment: dict[str, object]
    rows: list[SizeMeasurement]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def table(self) -> Table:
        """To print."""
        title = "\n".join(f"{name}: {value}" for name, value in self.environment.items())
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        table.add_column("form", no_wrap=True)
        for column in ("side", "ms", "ms per megapixel", "MiB", "MiB per megapixel"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            memory = ("", "") if row.peak_mib is None else (row.peak_mib, row.peak_mib / row.megapixels)
            figures = (row.milliseconds, row.milliseconds / row.megapixels, *memory)
            table.add_row(row.form, str(row.side), *(f if f == "" else f"{f:.0f}" for f in figures))
        return table

    def plot(self, path: str | Path) -> None:
        """Draw time and memory per megapixel over the side of the image, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, name, unit in zip(panels, ("milliseconds", "peak_mib"), ("ms", "MiB")):
            for form in FORMS:
                rows = [row for row in self.rows if row.form == form and getattr(row, name) is not None]
                values = [getattr(row, name) / row.megapixels for row in rows]
                panel.plot([row.side for row in rows], values, marker="o", label=form)
            panel.set(xlabel="side of the image, pixels", ylabel=f"{unit} per megapixel", ylim=(0, None))
            panel.grid(alpha=0.3)
        panels[0].legend()
        figure.suptitle(f"{self.environment['arch']}, {self.environment['threads']} threads")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


@torch.inference_mode()
def benchmark_sizes(
    arch: str = "B",
    img_size: int = 224,
    sizes: Sequence[int] = (256, 512, 1024, 2048),
    threads: int | None = None,
    dtype: str = "float32",
    repeats: int = 5,
) -> SizeBenchmark:
    """Measure both forms of a RepMLPNet on single square images of several sizes.

    Args:
        arch: Letter of the architecture. Default: B.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        sizes: Sides of the images in pixels. Default: (256, 512, 1024, 2048).
        threads: Threads to compute with; None for torch's choice. Default: None.
        dtype: Precision: float32, float64 or bfloat16. Default: float32.
        repeats: Counted calls for each figure. Default: 5.
    """
    if threads:
        torch.set_num_threads(threads)
    precision = getattr(torch, dtype)
    model = RepMLPNet(arch, img_size, out_indices=(0, 1, 2, 3)).to(precision).eval()
    deployed = copy.deepcopy(model)
    deployed.switch_to_deploy()
    rows = []
    for side in sizes:
        x = torch.randn(1, 3, side, side, dtype=precision)
        calls = {form: lambda m=m, x=x: m(x) for form, m in zip(FORMS, (model, deployed))}
        seconds = interleave(calls, repeats, f"{arch}{img_size}, {side} pixels")
        for form, call in calls.items():
            rows.append(SizeMeasurement(form, side, 1e3 * statistics.median(seconds[form]), peak_memory(call)))
    settings = dict(arch=f"RepMLPNet-{arch}{img_size}", dtype=dtype, repeats=repeats)
    return SizeBenchmark({**settings, **environment()}, rows)
