# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to an int8 graph, and what that costs."""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich import box
from rich.table import Table
from torch import Tensor

from mmrepmlp.export import OnnxNetwork
from mmrepmlp.quantization import quantize_onnx, rank_nodes

from .benchmark import interleave
from .checks import check_config
from .onnx import export_checkpoint, test_onnx
from .run import load_config


@dataclass
class QuantizationReport:
    """What quantization did; pairs are float32 and int8.

    Attributes:
        path: The int8 graph.
        metrics: On the config's test set, by name.
        megabytes: Sizes of the files, in units of 1e6 bytes.
        milliseconds: Median times of one image in ONNX Runtime.
        kept: Nodes that were left in float32, and what each loses in int8.
    """

    path: Path
    metrics: dict[str, tuple[float, float]]
    megabytes: tuple[float, float]
    milliseconds: tuple[float, float]
    kept: list[tuple[str, float]]

    def table(self) -> Table:
        """To print."""
        table = Table(title=f"{self.path}", title_justify="left", box=box.SIMPLE)
        for column in ("", "float32", "int8"):
            table.add_column(column, justify="right" if column else "left")
        for name, values in self.metrics.items():
            table.add_row(name, *(f"{value:.2f}" for value in values))
        table.add_row("size, MB", *(f"{value:.2f}" for value in self.megabytes))
        table.add_row("one image, ms", *(f"{value:.2f}" for value in self.milliseconds))
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
        checkpoint: Its checkpoint; config and checkpoint may be those of either form.
        out: The ONNX file to write.
        images: Number of training images to calibrate with; they go through the test pipeline. Default: 128.
        keep_float: How many nodes to leave in float32: those that lose most, which is measured. Default: 0.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.
        overwrite: Whether an existing file may be replaced. Default: False.

    Returns:
        Accuracy, size and speed before and after.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        FileNotFoundError: A data set is not there.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: The checkpoint does not belong to the config's model.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists and is kept. Name another file, or pass --overwrite to replace it.")
    cfg = load_config(config, cfg_options, work_dir)
    check_config(cfg, "train", "test")
    batches = calibration_batches(cfg, images)
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder, "float32.onnx")
        export_checkpoint(config, checkpoint, single, size=tuple(batches[0].shape[2:]))
        kept = rank_nodes(single, batches)[:keep_float] if keep_float else []
        quantize_onnx(single, out, batches, [name for name, _ in kept])
        before, after = (test_onnx(config, path, work_dir, cfg_options) for path in (single, out))
        networks = {name: OnnxNetwork(path) for name, path in (("float32", single), ("int8", out))}
        image = batches[0][:1]
        calls = {name: lambda network=network: network(image) for name, network in networks.items()}
        seconds = interleave(calls, 50, "one image").values()
        return QuantizationReport(
            path=out,
            metrics={name: (float(before[name]), float(after[name])) for name in before},
            megabytes=tuple(path.stat().st_size / 1e6 for path in (single, out)),
            milliseconds=tuple(1e3 * statistics.median(times) for times in seconds),
            kept=kept,
        )


def calibration_batches(cfg: Config, images: int, batch_size: int = 16) -> list[Tensor]:
    """Training images of a config as its network sees them in a test.

    Args:
        cfg: The config.
        images: How many, drawn at random but always the same.
        batch_size: Images in a batch. Default: 16.

    Returns:
        Normalized batches of shape (N, C, H, W).
    """
    loader = ConfigDict(
        {
            **cfg.test_dataloader,
            "dataset": {**cfg.train_dataloader.dataset, "pipeline": cfg.test_dataloader.dataset.pipeline},
            "sampler": dict(type="DefaultSampler", shuffle=True),
            "batch_size": batch_size,
        }
    )
    settings = cfg.model.get("data_preprocessor") or cfg.data_preprocessor
    if "type" not in settings:
        settings = {"type": "ClsDataPreprocessor", **settings}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        preprocess = MODELS.build(settings)
        batches = []
        for data in Runner.build_dataloader(loader, seed=0):
            batches.append(torch.as_tensor(preprocess(data, False)["inputs"]))
            if len(batches) * batch_size >= images:
                break
    return batches
