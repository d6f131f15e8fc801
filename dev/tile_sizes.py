# SPDX-License-Identifier: Apache-2.0
"""Test a classifier with a RepMLPNet on images, and with tiles, of other sizes than it was trained with."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dev.repeated import train_once
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.benchmark.hardware import CPU
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.benchmark.runtimes import DEPLOY, FORMS
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.model import build_model
from mmrepmlp.verbs.test.evaluate import evaluate_weights


def measure_tile_sizes(
    config: str | Path,
    sides: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    work_dir: str | None = None,
    out: str | Path | None = None,
) -> BenchmarkReport:
    """Train a classifier, and test its weights in both forms, resampled to other tile sizes.

    Args:
        config: Config of an image classifier whose test pipeline has a ``Resize`` in second place.
        sides: Sides in pixels of the images to test on, each with tiles made for it.
        seeds: Seeds to train with. Default: 0, 1, 2.
        work_dir: Folder for the runs. Default: the config's, or ``work_dirs/<name of the config>``.
        out: JSON file for the results. Default: None.

    Returns:
        A row for each form of the checkpoint and each side, with the metrics for each seed.
    """
    cfg = load_config(config, None, work_dir)
    rows = {(form, side): {"form": form, "side": side} for form in FORMS for side in sides}
    for seed in seeds:
        folder = Path(cfg.work_dir, f"seed{seed}")
        model = build_model(cfg, train_once(config, folder, seed))
        for form in FORMS:
            state = model.state_dict() if form != DEPLOY else switch_to_deploy(model).state_dict()
            for side in sides:
                options = {"model.backbone.img_size": side, "test_dataloader.dataset.pipeline.1.scale": side}
                options["model.backbone.deploy"] = form == DEPLOY
                for metric, value in evaluate_weights(config, state, str(folder), options).items():
                    rows[form, side].setdefault(metric, []).append(value)
    environment = {"config": Path(config).stem, "seeds": list(seeds), **CPU.environment()}
    report = BenchmarkReport(environment, list(rows.values()))
    if out:
        report.save_json(out)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--sides", nargs="+", type=int, required=True, help="sides of the images, pixels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds to train with (default: 0 1 2)")
    parser.add_argument("--work-dir", help="folder for the runs (default: work_dirs/<name of the config>)")
    parser.add_argument("--out", metavar="RESULT.json", help="write the results here")
    Console().print(measure_tile_sizes(**vars(parser.parse_args())).table())


if __name__ == "__main__":
    main()
