# SPDX-License-Identifier: Apache-2.0
"""Measure what the fully connected layers and the local perceptron of a RepMLPNet contribute."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from torch import Tensor

from dev.repeated import train_once
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.benchmark.hardware import CPU
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.config import load_config, resolve_type
from mmrepmlp.verbs.test.evaluate import evaluate_weights

FULL = "fc3 and local perceptron"
# Settings of what is trained. A batch norm that starts at zero and does not learn leaves fc3 out.
VARIANTS = {
    FULL: {},
    "without fc3": {
        "model.backbone.fc3_norm_init": 0.0,
        "optim_wrapper.paramwise_cfg.custom_keys.fc3_bn": dict(lr_mult=0.0, decay_mult=0.0),
    },
    "without local perceptron": {"model.backbone.reparam_conv_kernels": None},
}
# What is set to zero in the first of them after training, by a part of the parameters' names.
ZEROED = {"fc3 zeroed after training": ".fc3_bn.", "local perceptron zeroed after training": ".repconv"}


def ablate(
    config: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    out: str | Path | None = None,
) -> BenchmarkReport:
    """Train a network whole, without fc3 and without its local perceptron, and test it with either zeroed afterwards.

    What was trained before in the same folder is not trained again.

    Args:
        config: Config of a model with a RepMLPNet backbone in training form, and of its training and test.
        seeds: Seeds to train each variant with. Default: 0, 1, 2.
        work_dir: Folder for the runs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override in all variants, by dotted names. Default: None.
        variants: What to train, by the names of :data:`VARIANTS`. Default: all.
        out: JSON file for the results. Default: None.

    Returns:
        A row for each variant, with its metrics for each seed.

    Raises:
        MMRepMLPError: The backbone is no RepMLPNet in training form, or there are no seeds.
        ValueError: The config sets nothing to train or to test.
    """
    cfg = load_config(config, cfg_options, work_dir)
    backbone = cfg.model.get("backbone") or {}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        kind = resolve_type(backbone, MODELS)
    if not (isinstance(kind, type) and issubclass(kind, RepMLPNet)) or backbone.get("deploy") or not seeds:
        raise MMRepMLPError(
            f"{config}: expected a model with backbone type='mmrepmlp.RepMLPNet' in training form, and a seed."
        )
    rows: dict[str, dict[str, object]] = {}
    for variant in variants:
        settings = VARIANTS[variant]
        for seed in seeds:
            folder = Path(cfg.work_dir, f"{variant.replace(' ', '_')}_seed{seed}")
            options = {**(cfg_options or {}), **settings}
            state = train_once(config, folder, seed, options)
            parts = {variant: None, **(ZEROED if variant == FULL else {})}
            for name, part in parts.items():
                row = rows.setdefault(name, {"network": name})
                for metric, value in evaluate_weights(config, zeroed(state, part), str(folder), options).items():
                    row.setdefault(metric, []).append(value)
    environment = {"config": Path(config).stem, **(cfg_options or {}), "seeds": list(seeds), **CPU.environment()}
    report = BenchmarkReport(environment, list(rows.values()))
    if out:
        report.save_json(out)
    return report


def zeroed(state: Mapping[str, Tensor], part: str | None) -> dict[str, Tensor]:
    """Weights with those set to zero whose name has some part."""
    return {name: torch.zeros_like(value) if part and part in name else value for name, value in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for the runs (default: work_dirs/<name of the config>)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="settings to override")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds to train with (default: 0 1 2)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="what to train")
    parser.add_argument("--out", metavar="RESULT.json", help="write the results here")
    Console().print(ablate(**vars(parser.parse_args())).table())


if __name__ == "__main__":
    main()
