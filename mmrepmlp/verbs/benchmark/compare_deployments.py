# SPDX-License-Identifier: Apache-2.0
"""Compare deployed networks of one model: accuracy, size, latency."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.deploy.folder import Deployment
from mmrepmlp.verbs.deploy.images import dataset_images
from mmrepmlp.verbs.test.evaluate_deployment import evaluate_deployment


@dataclass
class DeploymentMeasurement:
    """Accuracy, size and latency of a deployed network.

    Attributes:
        folder: Where it is.
        runtime: What runs it.
        precision: What it computes in.
        metrics: Metrics on the config's test set, by name.
        megabytes: Size of its files, in units of 1e6 bytes.
        milliseconds: Median latency of one image.
    """

    folder: Path
    runtime: str
    precision: str
    metrics: dict[str, float]
    megabytes: float
    milliseconds: float


@dataclass
class DeploymentComparison:
    """Measurements of several deployed networks of one model, by name."""

    deployments: dict[str, DeploymentMeasurement]

    def table(self) -> Table:
        """The comparison as a table to print, one row per network."""
        table = Table(box=box.SIMPLE, pad_edge=False)
        for column in ("folder", "runtime", "precision"):
            table.add_column(column, no_wrap=True)
        rows = self.deployments.values()
        metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
        for column in (*metrics, "MB", "ms, one image"):
            table.add_column(column, justify="right")
        for name, row in self.deployments.items():
            figures = [*(row.metrics.get(metric, float("nan")) for metric in metrics), row.megabytes, row.milliseconds]
            table.add_row(name, row.runtime, row.precision, *(f"{figure:.4g}" for figure in figures))
        return table


def compare_deployments(
    config: str | Path,
    folders: Sequence[str | Path],
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    repeats: int = 50,
) -> DeploymentComparison:
    """Evaluate deployed networks on a config's test set, and time them in interleaved calls.

    Args:
        config: Path of the config file, or ``package::path``.
        folders: Folders written by :func:`deploy_checkpoint` for models of this config.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.
        repeats: Timed calls of each. Default: 50.

    Raises:
        FileNotFoundError: There is no deployed network, or a data set does not exist.
        DeploymentError: A network is of another model than the config's.
    """
    cfg = load_config(config, cfg_options, work_dir)
    deployments = [Deployment.read(folder) for folder in folders]
    stems = [deployment.folder.name for deployment in deployments]
    names = stems if len(set(stems)) == len(stems) else list(map(str, folders))
    image = dataset_images(cfg, "test", 1)[0]
    graphs = {name: deployment.load() for name, deployment in zip(names, deployments)}
    calls = {name: lambda graph=graph: graph(image) for name, graph in graphs.items()}
    metrics = [evaluate_deployment(config, folder, work_dir, cfg_options) for folder in folders]
    seconds = interleave(calls, repeats, "one image")
    return DeploymentComparison(
        {
            name: DeploymentMeasurement(
                folder=deployment.folder,
                runtime=deployment.settings["runtime"],
                precision=deployment.settings["precision"],
                metrics=measured,
                megabytes=deployment.megabytes,
                milliseconds=1e3 * statistics.median(seconds[name]),
            )
            for name, deployment, measured in zip(names, deployments, metrics)
        }
    )
