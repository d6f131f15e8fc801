# SPDX-License-Identifier: Apache-2.0
"""Compare exported graphs of one model: accuracy, size, latency."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from mmrepmlp.apis.benchmarks.measure import interleave
from mmrepmlp.apis.config import load_config
from mmrepmlp.apis.deployment.calibration import calibration_batches
from mmrepmlp.apis.deployment.evaluate_onnx import evaluate_onnx
from mmrepmlp.export import OnnxNetwork


@dataclass
class GraphMeasurement:
    """Accuracy, size and latency of a graph.

    Attributes:
        path: The ONNX file.
        metrics: Metrics on the config's test set, by name.
        megabytes: Size of the file, in units of 1e6 bytes.
        milliseconds: Median latency of one image in ONNX Runtime.
    """

    path: Path
    metrics: dict[str, float]
    megabytes: float
    milliseconds: float


@dataclass
class GraphComparison:
    """Measurements of several graphs of one model, by name."""

    graphs: dict[str, GraphMeasurement]

    def table(self) -> Table:
        """The comparison as a table to print, one row per graph."""
        table = Table(box=box.SIMPLE, pad_edge=False)
        table.add_column("graph", no_wrap=True)
        metrics = list(dict.fromkeys(name for graph in self.graphs.values() for name in graph.metrics))
        for column in (*metrics, "MB", "ms, one image"):
            table.add_column(column, justify="right")
        for name, graph in self.graphs.items():
            figures = [graph.metrics.get(metric, float("nan")) for metric in metrics]
            figures += [graph.megabytes, graph.milliseconds]
            table.add_row(name, *(f"{figure:.2f}" for figure in figures))
        return table


def compare_graphs(
    config: str | Path,
    graphs: Mapping[str, str | Path] | Sequence[str | Path],
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    repeats: int = 50,
) -> GraphComparison:
    """Evaluate exported classifiers or segmentors on a config's test set, and time them in interleaved calls.

    Args:
        config: Path of the config file, or ``package::path``.
        graphs: ONNX files of this model, by name. Names of a plain sequence: file names, or paths if two files share a
            name.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.
        repeats: Timed calls of each graph. Default: 50.

    Raises:
        ValueError: A graph does not belong to the config's model.
        FileNotFoundError: A data set does not exist.
    """
    cfg = load_config(config, cfg_options, work_dir)
    if not isinstance(graphs, Mapping):
        stems = [Path(path).stem for path in graphs]
        graphs = dict(zip(stems if len(set(stems)) == len(stems) else map(str, graphs), graphs))
    networks = {name: OnnxNetwork(path) for name, path in graphs.items()}
    metrics = {name: evaluate_onnx(config, path, work_dir, cfg_options, progress=True) for name, path in graphs.items()}
    image = calibration_batches(cfg, images=1, batch_size=1)[0]
    calls = {name: lambda network=network: network(image) for name, network in networks.items()}
    seconds = interleave(calls, repeats, "one image")
    measurements = {
        name: GraphMeasurement(
            path=Path(path),
            metrics={metric: float(value) for metric, value in metrics[name].items()},
            megabytes=Path(path).stat().st_size / 1e6,
            milliseconds=1e3 * statistics.median(seconds[name]),
        )
        for name, path in graphs.items()
    }
    return GraphComparison(measurements)
