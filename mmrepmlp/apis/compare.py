# SPDX-License-Identifier: Apache-2.0
"""A classifier before and after its conversion: predictions, accuracy, size, speed."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from rich import box
from rich.table import Table

from mmrepmlp.checkpoint import load_from_local, unwrap

from .benchmark import interleave
from .reparameterize import build_model

BATCHES = (1, 32)


@dataclass
class Comparison:
    """Two forms of a classifier on the same test set; pairs are before and after.

    Attributes:
        images: Number of test images.
        same: On how many of them both predict the same class.
        accuracy: Top-1 accuracies in percent.
        error: Largest difference between any two scores of a class.
        parameters: Numbers of parameters.
        milliseconds: Median times of a forward pass, by number of images.
    """

    images: int
    same: int
    accuracy: tuple[float, float]
    error: float
    parameters: tuple[int, int]
    milliseconds: dict[int, tuple[float, float]]

    def table(self) -> Table:
        """To print."""
        table = Table(title="Training form and deploy form", title_justify="left", box=box.SIMPLE)
        table.add_column("")
        for column in ("training form", "deploy form", ""):
            table.add_column(column, justify="right")
        table.add_row("top-1 accuracy", *(f"{a:.2f} %" for a in self.accuracy), "")
        table.add_row("same prediction", "", f"{self.same} of {self.images}", "")
        table.add_row("largest score difference", "", f"{self.error:.1e}", "")
        table.add_row("parameters", *(f"{count:,}" for count in self.parameters), "")
        for batch, (before, after) in self.milliseconds.items():
            times = f"{before / after:.2f} times as fast"
            table.add_row(f"forward pass, batch {batch}", f"{before:.1f} ms", f"{after:.1f} ms", times)
        return table


def compare_classifiers(
    configs: tuple[str | Path, str | Path],
    checkpoints: tuple[str | Path, str | Path],
    predictions: tuple[str | Path, str | Path],
    repeats: int = 30,
) -> Comparison:
    """Compare a classifier in training form with its deploy form.

    Args:
        configs: Configs of both forms.
        checkpoints: Checkpoints of both forms.
        predictions: What ``tools/test.py --out`` wrote for both, on the same test set.
        repeats: Counted forward passes of each for the times. Default: 30.

    Raises:
        ValueError: The predictions are not of the same images.
    """
    before, after = (mmengine.load(str(path)) for path in predictions)
    if [sample["img_path"] for sample in before] != [sample["img_path"] for sample in after]:
        raise ValueError(f"{predictions[0]} and {predictions[1]} are predictions of different images.")
    scores = [torch.stack([sample["pred_score"] for sample in samples]) for samples in (before, after)]
    truth = torch.cat([sample["gt_label"] for sample in before])
    guesses = [score.argmax(1) for score in scores]
    models = [build_model(Config.fromfile(c), unwrap(load_from_local(p))) for c, p in zip(configs, checkpoints)]
    return Comparison(
        images=len(truth),
        same=int((guesses[0] == guesses[1]).sum()),
        accuracy=tuple(100 * (guess == truth).double().mean().item() for guess in guesses),
        error=(scores[0] - scores[1]).abs().max().item(),
        parameters=tuple(sum(p.numel() for p in model.parameters()) for model in models),
        milliseconds={batch: forward_times(models, batch, repeats) for batch in BATCHES},
    )


@torch.inference_mode()
def forward_times(models: list[torch.nn.Module], batch: int, repeats: int) -> tuple[float, float]:
    """Median times in milliseconds of both models on random images, measured in turn."""
    images = torch.randn(batch, 3, *models[0].backbone.img_size)
    calls = {name: lambda model=model: model(images, mode="tensor") for name, model in zip(("before", "after"), models)}
    seconds = interleave(calls, repeats, f"forward passes, batch {batch}")
    return tuple(1e3 * statistics.median(times) for times in seconds.values())
