# SPDX-License-Identifier: Apache-2.0
"""A table of deployed networks: their metric in PyTorch and as deployed."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from mmrepmlp.verbs.deploy.folder import Deployment, DeploymentError
from mmrepmlp.verbs.deploy.proof import main_metric, points


def accuracy_table(folders: Sequence[str | Path]) -> Table:
    """Put the metrics of deployed networks, of any configs and tasks, in one table.

    Args:
        folders: Folders that :func:`deploy_checkpoint` wrote with ``verify_on="test"``, which measures the metric.

    Raises:
        FileNotFoundError: A folder is no deployed network.
        DeploymentError: No metric was measured of one, or its files were changed.
    """
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("network", "graph", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("PyTorch", "deployed", "drop", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for deployment in map(Deployment.read, folders):
        settings = deployment.settings
        if not settings["metrics"]:
            raise DeploymentError(f"{deployment.folder} has no metric. Deploy it again with --verify-on test.")
        name = main_metric(settings["metrics"]["before"])
        before, after = (points(name, settings["metrics"][when][name]) for when in ("before", "after"))
        figures = [f"{value:.2f}" for value in (before, after, before - after, deployment.megabytes)]
        runtime = "" if settings["runtime"] == "openvino" else f", {settings['runtime']}"
        graph = settings["precision"] + runtime
        table.add_row(deployment.folder.name, graph, name.rpartition("/")[2], *figures)
    return table
