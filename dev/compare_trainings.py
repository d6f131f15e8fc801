# SPDX-License-Identifier: Apache-2.0
"""Compare configs by what comes of training each with several seeds."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import DictAction
from rich.console import Console
from torch import nn

from dev.repeated import train_once
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.benchmark.hardware import CPU
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.benchmark.runtimes import FORMS
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model, call_model, random_images
from mmrepmlp.verbs.test.evaluate import evaluate_weights
from mmrepmlp.verbs.train.resume import latest_checkpoint


def compare_trainings(
    configs: Sequence[str | Path],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    work_dir: str | Path = "work_dirs",
    cfg_options: dict | None = None,
    repeats: int = 50,
    int8: bool = False,
    out: str | Path | None = None,
) -> BenchmarkReport:
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

    Returns:
        A row for each config: its metrics for each seed, those of int8 by names that begin with ``int8``; parameters of
        both forms; milliseconds of a forward pass of one image in both forms.

    Raises:
        MMRepMLPError: There are no seeds, or two configs have the same name.
        FileNotFoundError: A config or a dataset does not exist.
        DeploymentError: A network cannot be quantized.
    """
    names = [Path(config).stem for config in configs]
    if not seeds or len(set(names)) < len(names):
        raise MMRepMLPError(f"configs={names}, seeds={list(seeds)}: expected configs of distinct names, and a seed.")
    calls, rows = {}, []
    for config, name in zip(configs, names):
        row: dict[str, object] = {"config": name}
        for seed in seeds:
            folder = Path(work_dir, f"{name}_seed{seed}")
            state = train_once(config, folder, seed, cfg_options)
            metrics = evaluate_weights(config, state, str(folder), cfg_options)
            if int8:
                quantized = evaluate_int8(config, folder, cfg_options)
                metrics |= {f"int8 {metric}": value for metric, value in quantized.items()}
            for metric, value in metrics.items():
                row.setdefault(metric, []).append(value)
        cfg = read_config(config, cfg_options)
        for form, model in zip(FORMS, (build_model(cfg, state), switch_to_deploy(build_model(cfg, state)))):
            row[f"parameters, {form}"] = sum(parameter.numel() for parameter in model.parameters())
            calls[name, form] = forward_call(model)
        rows.append(row)
    seconds = interleave(calls, repeats, "forward passes")
    for row in rows:
        row |= {f"ms, {form}": 1e3 * statistics.median(seconds[row["config"], form]) for form in FORMS}
    environment = {**(cfg_options or {}), "seeds": list(seeds), "repeats": repeats, **CPU.environment()}
    report = BenchmarkReport(environment, rows)
    if out:
        report.save_json(out)
    return report


def evaluate_int8(config: str | Path, folder: Path, cfg_options: dict | None) -> dict[str, float]:
    """Quantize the network trained in a folder, in a folder inside, and test it."""
    # Here, since they need a torch that exports, and the rest does not.
    from mmrepmlp.verbs.deploy.deploy import deploy_checkpoint
    from mmrepmlp.verbs.test.evaluate_deployment import evaluate_deployment

    out = folder / "int8"
    deploy_checkpoint(config, latest_checkpoint(folder), out, precision="int8", cfg_options=cfg_options, overwrite=True)
    return evaluate_deployment(config, out, str(folder), cfg_options)


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
