# SPDX-License-Identifier: Apache-2.0
"""Checkpoints out of the framework, and their evaluation there."""

from pathlib import Path

from torch import nn

from mmrepmlp.checkpoint import load_from_local, unwrap
from mmrepmlp.export import OnnxNetwork, OnnxReport, export_onnx

from .checks import check_config
from .config import read_config
from .model import build_model
from .run import build_runner, load_config


def export_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    size: tuple[int, int] | None = None,
    backbone_only: bool = False,
    ema: bool = False,
    **options,
) -> OnnxReport:
    """Export a checkpoint to ONNX, checked by ONNX Runtime.

    Args:
        config: Config of the model: a classifier or segmentor.
        checkpoint: Its checkpoint; config and checkpoint may be those of either form.
        out: The file to write.
        size: Height and width of the images in pixels. Default: the backbone's ``img_size``.
        backbone_only: Whether to leave the head out. Default: False.
        ema: Whether to take the weights averaged over the training. Default: False.
        **options: Further arguments of :func:`mmrepmlp.export.export_onnx`: ``batch``, ``dynamic``, ``opset``,
            ``deploy``, ``tolerance``, ``overwrite``.

    Returns:
        What was exported.

    Raises:
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: The checkpoint does not belong to the config's model, or an argument is out of its range.
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        ExportError: The graph could not be made or does not compute the same.
    """
    model = build_model(read_config(config), unwrap(load_from_local(checkpoint), ema))
    size = tuple(size or model.backbone.img_size)
    network = model.backbone if backbone_only else model
    return export_onnx(network, out, size, **options)


def test_onnx(
    config: str | Path, onnx_file: str | Path, work_dir: str | None = None, cfg_options: dict | None = None
) -> dict[str, float]:
    """Evaluate an exported classifier or segmentor on a config's test set, computed by ONNX Runtime.

    Args:
        config: Path of the config file, or ``package::path``.
        onnx_file: What :func:`export_checkpoint` wrote for a model of this config.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.

    Returns:
        The metrics.

    Raises:
        ValueError: The model is neither a classifier nor a segmentor, or the graph is not of a whole one.
        FileNotFoundError: A data set is not there.
    """
    cfg = load_config(config, cfg_options, work_dir)
    check_config(cfg, "test")
    cfg.load_from = None
    runner = build_runner(cfg)
    compute_by(runner.model, OnnxNetwork(onnx_file))
    return runner.test()


def compute_by(model: nn.Module, network: OnnxNetwork) -> None:
    """Let a network compute the logits of a classifier or segmentor, which keeps its pre- and post-processing.

    Raises:
        ValueError: The model is of another kind, or the graph gives no logits for its classes.
    """
    head = getattr(model, "decode_head", None) or getattr(model, "head", None)
    if head is None:
        raise ValueError(f"{type(model).__name__} is neither a classifier nor a segmentor, whose graphs give logits.")
    # A decode head of two classes may have one channel.
    classes = getattr(head, "out_channels", None) or head.num_classes
    if network.channels != classes:
        raise ValueError(
            f"The graph gives {network.channels} channels, the config's head {classes}, one for each class. Export the "
            "whole model of this config."
        )
    model.extract_feat = lambda images, **kwargs: images
    head.forward = lambda images: network(images)[0]
