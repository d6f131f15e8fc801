# SPDX-License-Identifier: Apache-2.0
"""Compare configs by what comes of training each with several seeds."""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from mmengine.config import DictAction
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from dev.repeated import mean_and_deviation, train_once
from mmrepmlp.checkpoint import atomic_write
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model, call_model, random_images
from mmrepmlp.verbs.test.evaluate import evaluate_weights
from mmrepmlp.verbs.train.resume import latest_checkpoint


@dataclass
class TrainedConfig:
    """What came of a config.

    Attributes:
        metrics: By name, the metric for each seed.
        parameters: Numbers of parameters of the training form and of the deploy form.
        milliseconds: Median times of a forward pass of one image in both forms.
        int8: The metrics of the deploy form in int8, quantized after training; empty where that was not wanted.
    """

    metrics: dict[str, list[float]]
    parameters: tuple[int, int]
    milliseconds: tuple[float, float]
    int8: dict[str, list[float]] = field(default_factory=dict)


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
        precisions = ("metrics", "int8") if any(row.int8 for row in self.configs.values()) else ("metrics",)
        columns = [(precision, name) for name in names for precision in precisions]
        titles = [name if precision == "metrics" else precision for precision, name in columns]
        for column in (*titles, "parameters", "deployed", "ms", "deployed"):
            table.add_column(column, justify="right")
        for config, row in self.configs.items():
            values = [getattr(row, precision).get(name) for precision, name in columns]
            metrics = ("" if value is None else mean_and_deviation(value) for value in values)
            counts, times = (f"{count:,}" for count in row.parameters), (f"{ms:.2f}" for ms in row.milliseconds)
            table.add_row(config, *metrics, *counts, *times)
        return table


def compare_trainings(
    configs: Sequence[str | Path],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    work_dir: str | Path = "work_dirs",
    cfg_options: dict | None = None,
    repeats: int = 50,
    int8: bool = False,
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
        int8: Whether to test the deploy form quantized to int8 after training as well, in OpenVINO. Default: False.
        out: JSON file for the results. Default: None.

    Raises:
        MMRepMLPError: There are no seeds, or two configs have the same name.
        FileNotFoundError: A config or a dataset does not exist.
        DeploymentError: A network cannot be quantized.
    """
    names = [Path(config).stem for config in configs]
    if not seeds or len(set(names)) < len(names):
        raise MMRepMLPError(f"configs={names}, seeds={list(seeds)}: expected configs of distinct names, and a seed.")
    metrics: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    quantized: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    calls, sizes = {}, {}
    for config, name in zip(configs, names):
        for seed in seeds:
            folder = Path(work_dir, f"{name}_seed{seed}")
            state = train_once(config, folder, seed, cfg_options)
            metrics[name].append(evaluate_weights(config, state, str(folder), cfg_options))
            if int8:
                quantized[name].append(evaluate_int8(config, folder, cfg_options))
        cfg = read_config(config, cfg_options)
        forms = build_model(cfg, state), switch_to_deploy(build_model(cfg, state))
        sizes[name] = tuple(sum(parameter.numel() for parameter in form.parameters()) for form in forms)
        calls |= {(name, index): forward_call(form) for index, form in enumerate(forms)}
    seconds = interleave(calls, repeats, "forward passes")
    medians = {key: 1e3 * statistics.median(times) for key, times in seconds.items()}
    rows = {}
    for name in names:
        times = (medians[name, 0], medians[name, 1])
        rows[name] = TrainedConfig(by_metric(metrics[name]), sizes[name], times, by_metric(quantized[name]))
    comparison = TrainingComparison(list(seeds), rows)
    if out:
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(asdict(comparison), indent=1) + "\n")
    return comparison


def evaluate_int8(config: str | Path, folder: Path, cfg_options: dict | None) -> dict[str, float]:
    """Quantize the network trained in a folder, in a folder inside, and test it."""
    # Here, since they need a torch that exports, and the rest does not.
    from mmrepmlp.verbs.deploy.deploy import deploy_checkpoint
    from mmrepmlp.verbs.test.evaluate_deployment import evaluate_deployment

    out = folder / "int8"
    deploy_checkpoint(config, latest_checkpoint(folder), out, precision="int8", cfg_options=cfg_options, overwrite=True)
    return evaluate_deployment(config, out, str(folder), cfg_options)


def by_metric(results: list[dict[str, float]]) -> dict[str, list[float]]:
    """From the metrics of each seed to the seeds of each metric."""
    return {name: [result[name] for result in results] for name in (results[0] if results else ())}


def forward_call(model: nn.Module) -> object:
    """A forward pass of one image."""
    images = random_images(model, 1).float()
    return torch.inference_mode()(lambda: call_model(model, images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", help="config files")
    parser.add_argument("--work-dir", default="work_dirs", help="folder for the runs (default: work_dirs)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="settings to override")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds (default: 0 1 2 3 4)")
    parser.add_argument("--int8", action="store_true", help="also test in int8, quantized after training")
    parser.add_argument("--out", metavar="RESULT.json", help="write the results here")
    Console().print(compare_trainings(**vars(parser.parse_args())).table())


if __name__ == "__main__":
    main()
