# SPDX-License-Identifier: Apache-2.0
"""Benchmark deployed folders: accuracy, size, latency."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmrepmlp.export.normalization import random_images
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.deploy.folder import Deployment
from mmrepmlp.verbs.deploy.images import dataset_images
from mmrepmlp.verbs.test.evaluate_deployment import evaluate_deployment
from mmrepmlp.verbs.test.metrics import main_metric, numbers, scale_of

from .hardware import Hardware
from .measure import interleave
from .report import BenchmarkReport

SIDE = 224  # height and width of images for graphs that take any size, in pixels


def benchmark_deployments(
    folders: Sequence[str | Path],
    config: str | Path | None,
    size: tuple[int, int] | None,
    repeats: int,
    hardware: Hardware,
    work_dir: str | None,
    cfg_options: dict | None,
) -> BenchmarkReport:
    """Measure deployed folders; the arguments are those of :func:`benchmark`.

    With a config, the folders must fit its model and are evaluated on its test set. Without, they may be of any models,
    and the accuracy is the one measured when they were deployed.
    """
    hardware.prepare()
    deployments = [Deployment.read(folder) for folder in folders]
    cfg = load_config(config, cfg_options, work_dir) if config else None
    image = dataset_images(cfg, "test", 1)[0] if cfg else None
    names = [deployment.folder.name for deployment in deployments]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    rows, calls = [], {}
    for name, deployment in zip(names, deployments):
        settings = deployment.settings
        row = dict(model=name, task=f"{settings['runtime']} {settings['precision']}", megabytes=deployment.megabytes)
        try:
            graph = deployment.load()
        except (ImportError, OSError) as error:
            row["reason"] = str(error)
        else:
            calls[name] = partial(graph, random_image(settings["input"], size) if image is None else image)
        if cfg:
            row |= numbers(evaluate_deployment(config, deployment.folder, work_dir, cfg_options))
        else:
            row |= stored_metric(settings)
        rows.append(row)
    seconds = interleave(calls, repeats, "one image")
    for row in rows:
        if row["model"] in seconds:
            row |= dict(batch=1, milliseconds=1e3 * statistics.median(seconds[row["model"]]))
    return BenchmarkReport(
        {**(dict(config=str(config)) if config else {}), "repeats": repeats, **hardware.environment()}, rows
    )


def random_image(spec: dict, size: tuple[int, int] | None) -> Tensor:
    """Draw a random image (1, H, W, C) for a graph, by the ``input`` entry of its ``deploy.json``."""
    height, width = (spec[name] or side for name, side in zip(("height", "width"), size or (SIDE, SIDE)))
    return random_images((1, height, width, spec["channels"]), getattr(torch, spec["type"]))


def stored_metric(settings: dict) -> dict[str, object]:
    """Return the metric in PyTorch and of the graph, in points, if it was measured when the network was deployed."""
    if not settings["metrics"]:
        return {}
    name = main_metric(settings["metrics"]["before"])
    unit = settings.get("unit") or scale_of(name, settings["metrics"]["before"][name])[0]
    before, after = (unit * settings["metrics"][when][name] for when in ("before", "after"))
    return dict(metric=name.rpartition("/")[2], before=before, after=after, drop=before - after)
