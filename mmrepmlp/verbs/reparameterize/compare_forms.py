# SPDX-License-Identifier: Apache-2.0
"""Compare a model before and after conversion: predictions, metrics, size, speed."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import mmengine
import torch
from rich import box
from rich.table import Table

from mmrepmlp.checkpoint import load_from_local, unwrap
from mmrepmlp.verbs.benchmark.hardware import Hardware
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.forward import random_images, run_model
from mmrepmlp.verbs.metrics import metrics_agree
from mmrepmlp.verbs.model import build_model
from mmrepmlp.verbs.reparameterize.predictions import Agreement, compare_predictions

BATCHES = (1, 32)


@dataclass
class Comparison:
    """Comparison of two forms of a model; pairs are (before, after).

    Attributes:
        agreement: Agreement of their predictions on the same test set.
        parameters: Numbers of parameters.
        milliseconds: Median times of a forward pass, by batch size.
    """

    agreement: Agreement
    parameters: tuple[int, int]
    milliseconds: dict[int, tuple[float, float]]

    @property
    def equal(self) -> bool:
        """Whether all metrics agree or, without any, all predictions."""
        if not self.agreement.metrics:
            return self.agreement.same == self.agreement.total
        return all(metrics_agree(before, after) for before, after in self.agreement.metrics.values())

    def table(self) -> Table:
        """The comparison as a table to print."""
        agreement = self.agreement
        table = Table(title="Training form and deploy form", title_justify="left", box=box.SIMPLE)
        table.add_column("")
        for column in ("training form", "deploy form", ""):
            table.add_column(column, justify="right")
        for name, values in agreement.metrics.items():
            table.add_row(name, *(f"{value:.2f} %" for value in values), "")
        table.add_row("same prediction", "", "", f"{agreement.same:,} of {agreement.total:,} {agreement.unit}")
        table.add_row("parameters", *(f"{count:,}" for count in self.parameters), "")
        for batch, (before, after) in self.milliseconds.items():
            times = f"{before / after:.2f} times as fast"
            table.add_row(f"forward pass, batch {batch}", f"{before:.1f} ms", f"{after:.1f} ms", times)
        return table


def compare_forms(
    configs: tuple[str | Path, str | Path],
    checkpoints: tuple[str | Path, str | Path],
    predictions: tuple[str | Path, str | Path],
    repeats: int = 30,
    device: str = "cpu",
) -> Comparison:
    """Compare a classifier, segmentor or detector in training form with its deploy form.

    Args:
        configs: Configs of both forms.
        checkpoints: Checkpoints of both forms.
        predictions: Files written by ``tools/test.py --out`` for both, on the same test set.
        repeats: Timed forward passes of each form. Default: 30.
        device: Where to time them, cpu or a GPU, e.g. ``cuda``. Default: cpu.

    Raises:
        ValueError: The predictions cannot be read, or belong to different images.
        MMRepMLPError: There is no such device.
    """
    hardware = Hardware(device)
    hardware.prepare()
    loaded = [read_config(config) for config in configs]
    models = [build_model(cfg, unwrap(load_from_local(path))) for cfg, path in zip(loaded, checkpoints)]
    agreement = compare_predictions(*map(read_predictions, predictions), loaded[0])
    return Comparison(
        agreement=agreement,
        parameters=tuple(sum(p.numel() for p in model.parameters()) for model in models),
        milliseconds={batch: forward_times(models, batch, repeats, hardware) for batch in BATCHES},
    )


def read_predictions(path: str | Path) -> list[dict]:
    """Read predictions that ``tools/test.py --out`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no predictions.
    """
    try:
        samples = mmengine.load(str(path), file_format="pkl")
    except FileNotFoundError:
        raise
    except Exception as error:  # of whatever the bytes made the reader do
        raise ValueError(f"{path} holds no predictions: {error}. Write them with tools/test.py --out.") from error
    if not isinstance(samples, list):
        raise ValueError(
            f"{path} holds a {type(samples).__name__}, no predictions. Write them with tools/test.py --out."
        )
    return samples


@torch.inference_mode()
def forward_times(models: list[torch.nn.Module], batch: int, repeats: int, hardware: Hardware) -> tuple[float, float]:
    """Median times in milliseconds of both models on random images of one tile, interleaved."""
    images = hardware.place(random_images(models[0], batch).float())
    placed = dict(zip(("before", "after"), map(hardware.place, models)))
    calls = {name: lambda model=model: run_model(model, images) for name, model in placed.items()}
    seconds = interleave(calls, repeats, f"forward passes, batch {batch}", hardware)
    return tuple(1e3 * statistics.median(times) for times in seconds.values())
