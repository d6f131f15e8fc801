# SPDX-License-Identifier: Apache-2.0
"""Compare configs by what comes of training each with several seeds."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import nn

from mmrepmlp.apis.analysis.repeated import mean_and_deviation, train_once
from mmrepmlp.apis.benchmarks.measure import interleave
from mmrepmlp.apis.config import read_config
from mmrepmlp.apis.forward import random_images, run_model
from mmrepmlp.apis.model import build_model
from mmrepmlp.apis.runs.evaluate import evaluate_weights
from mmrepmlp.checkpoint import atomic_write
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import switch_to_deploy


@dataclass
class TrainedConfig:
    """What came of a config.

    Attributes:
        metrics: By name, the metric for each seed.
        parameters: Numbers of parameters of the training form and of the deploy form.
        milliseconds: Median times of a forward pass of one image in both forms.
    """

    metrics: dict[str, list[float]]
    parameters: tuple[int, int]
    milliseconds: tuple[float, float]


@dataclass
class TrainingComparison:
    """What came of several configs, by name, trained with the same seeds."""

    seeds: list[int]
    configs: dict[str, TrainedConfig]

    def table(self) -> Table:
        """To print: mean and standard deviation over the seeds, size and speed of both forms."""
        table = Table(box=box.SIMPLE, pad_edge=False, title=f"seeds {self.seeds}", title_justify="left")
        table.add_column("config", overflow="fold")
        names = list(dict.fromkeys(name for row in self.configs.values() for name in row.metrics))
        for column in (*names, "parameters", "deployed", "ms", "deployed"):
            table.add_column(column, justify="right")
        for config, row in self.configs.items():
            metrics = (mean_and_deviation(row.metrics[name]) if name in row.metrics else "" for name in names)
            counts, times = (f"{count:,}" for count in row.parameters), (f"{ms:.2f}" for ms in row.milliseconds)
            table.add_row(config, *metrics, *counts, *times)
        return table


def compare_trainings(
    configs: Sequence[str | Path],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    work_dir: str | Path = "work_dirs",
    cfg_options: dict | None = None,
    repeats: int = 50,
    out: str | Path | None = None,
) -> TrainingComparison:
    """Train configs with several seeds, test them, and time both forms of each network in interleaved calls.

    What was trained before in the same folder is not trained again.

    Args:
        configs: The configs.
        seeds: Seeds to train each with. Default: 0 to 4.
        work_dir: Folder for the runs, ``<name of the config>_seed<seed>`` inside. Default: ``work_dirs``.
        cfg_options: Settings to override in all of them, by dotted names. Default: None.
        repeats: Timed calls of each form. Default: 50.
        out: JSON file for the results. Default: None.

    Raises:
        MMRepMLPError: There are no seeds, or two configs have the same name.
        FileNotFoundError: A config or a data set does not exist.
    """
    names = [Path(config).stem for config in configs]
    if not seeds or len(set(names)) < len(names):
        raise MMRepMLPError(f"configs={names}, seeds={list(seeds)}: expected configs of distinct names, and a seed.")
    metrics: dict[str, dict[str, list[float]]] = {}
    calls, sizes = {}, {}
    for config, name in zip(configs, names):
        for seed in seeds:
            folder = Path(work_dir, f"{name}_seed{seed}")
            state = train_once(config, folder, seed, cfg_options)
            for metric, value in evaluate_weights(config, state, str(folder), cfg_options).items():
                metrics.setdefault(name, {}).setdefault(metric, []).append(value)
        cfg = read_config(config, cfg_options)
        forms = build_model(cfg, state), switch_to_deploy(build_model(cfg, state))
        sizes[name] = tuple(sum(parameter.numel() for parameter in form.parameters()) for form in forms)
        calls |= {(name, index): forward_call(form) for index, form in enumerate(forms)}
    seconds = interleave(calls, repeats, "forward passes")
    medians = {key: 1e3 * statistics.median(times) for key, times in seconds.items()}
    rows = {name: TrainedConfig(metrics[name], sizes[name], (medians[name, 0], medians[name, 1])) for name in names}
    comparison = TrainingComparison(list(seeds), rows)
    if out:
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(asdict(comparison), indent=1) + "\n")
    return comparison


def forward_call(model: nn.Module) -> object:
    """A forward pass of one image."""
    images = random_images(model, 1).float()
    return torch.inference_mode()(lambda: run_model(model, images))
