# SPDX-License-Identifier: Apache-2.0
"""Quantize a checkpoint to an int8 graph after training, and compare it with float32."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from mmrepmlp.apis.config import load_config
from mmrepmlp.apis.deployment.calibration import calibration_batches
from mmrepmlp.apis.deployment.compare_graphs import GraphMeasurement, compare_graphs
from mmrepmlp.apis.deployment.export_checkpoint import export_checkpoint
from mmrepmlp.apis.runs.checks import check_config
from mmrepmlp.checkpoint import check_overwrite
from mmrepmlp.export.static_quantization import quantize_onnx, rank_nodes


@dataclass
class QuantizationReport:
    """Report of a quantization.

    Attributes:
        before: The graph in float32.
        after: The int8 graph.
        kept: Nodes that stay in float32, and the loss of each in int8.
    """

    before: GraphMeasurement
    after: GraphMeasurement
    kept: list[tuple[str, float]]

    def table(self) -> Table:
        """The report as a table to print."""
        table = Table(title=f"{self.after.path}", title_justify="left", box=box.SIMPLE)
        for column in ("", "float32", "int8"):
            table.add_column(column, justify="right" if column else "left")
        pair = (self.before, self.after)
        for name in self.before.metrics:
            table.add_row(name, *(f"{graph.metrics[name]:.2f}" for graph in pair))
        table.add_row("size, MB", *(f"{graph.megabytes:.2f}" for graph in pair))
        table.add_row("one image, ms", *(f"{graph.milliseconds:.2f}" for graph in pair))
        for name, error in self.kept:
            table.add_row(f"left in float32: {name}", "", f"would lose {error:.1e}")
        return table


def quantize_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    images: int = 128,
    keep_float: int = 0,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    overwrite: bool = False,
) -> QuantizationReport:
    """Quantize a classifier or segmentor to int8 after training, with the config's training images.

    Args:
        config: Path of the config file, or ``package::path``.
        checkpoint: Checkpoint of the model. Both may be in training form or in deploy form.
        out: The ONNX file to write.
        images: Number of training images to calibrate with, preprocessed by the test pipeline. Default: 128.
        keep_float: Number of nodes to keep in float32: those with the largest measured loss in int8. Default: 0.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.
        overwrite: Whether an existing file may be replaced. Default: False.

    Returns:
        Accuracy, size and speed before and after.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        FileNotFoundError: A data set does not exist.
        CheckpointError: The checkpoint cannot be read, or contains code.
        ValueError: The checkpoint does not belong to the config's model, or was trained with fake quantization.
    """
    out = Path(out)
    check_overwrite(out, overwrite=overwrite)
    cfg = load_config(config, cfg_options, work_dir)
    check_config(cfg, "train", "test")
    batches = calibration_batches(cfg, images)
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder, "float32.onnx")
        exported = export_checkpoint(config, checkpoint, single, size=tuple(batches[0].shape[2:]))
        if "QuantizeLinear" in exported.operators:
            raise ValueError(
                f"{checkpoint} was trained with fake quantization and has its own ranges and scales. Export it with "
                "tools/deployment/export_onnx.py, which writes an int8 graph."
            )
        kept = rank_nodes(single, batches)[:keep_float] if keep_float else []
        quantize_onnx(single, out, batches, [name for name, _ in kept])
        comparison = compare_graphs(config, {"before": single, "after": out}, work_dir, cfg_options)
        return QuantizationReport(**comparison.graphs, kept=kept)
