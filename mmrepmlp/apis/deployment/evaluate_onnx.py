# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from torch import nn

from mmrepmlp.apis.config import load_config
from mmrepmlp.apis.runs.checks import check_config
from mmrepmlp.apis.runs.runner import build_runner
from mmrepmlp.export import OnnxNetwork


def evaluate_onnx(
    config: str | Path,
    onnx_file: str | Path,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Evaluate an exported classifier or segmentor on a config's test set with ONNX Runtime.

    Args:
        config: Path of the config file, or ``package::path``.
        onnx_file: File written by :func:`export_checkpoint` for a model of this config.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.
        progress: Whether the terminal gets a progress bar and the metrics instead of the log. Default: False.

    Returns:
        The metrics.

    Raises:
        ValueError: The model is neither a classifier nor a segmentor, or the graph is not one of a whole model.
        FileNotFoundError: A data set does not exist.
    """
    cfg = load_config(config, cfg_options, work_dir)
    check_config(cfg, "test")
    cfg.load_from = None
    runner = build_runner(cfg, progress)
    replace_forward_by_onnx(runner.model, OnnxNetwork(onnx_file))
    return runner.test()


def replace_forward_by_onnx(model: nn.Module, network: OnnxNetwork) -> None:
    """Replace backbone and head of a classifier or segmentor by an ONNX graph; pre- and post-processing stay.

    Raises:
        ValueError: The model is of another kind, or the graph's outputs are not logits of its classes.
    """
    head = getattr(model, "decode_head", None) or getattr(model, "head", None)
    if head is None:
        raise ValueError(f"{type(model).__name__} is neither a classifier nor a segmentor.")
    # A decode head of two classes may have one channel.
    classes = getattr(head, "out_channels", None) or getattr(head, "num_classes", None)
    if network.outputs > 1:
        raise ValueError(
            f"The graph gives {network.outputs} outputs: expected the logits of one head, of a classifier or segmentor."
        )
    if classes not in (None, network.channels):
        raise ValueError(
            f"The graph gives {network.channels} channels, the config's head {classes}, one for each class. Export the "
            "whole model of this config."
        )
    model.extract_feat = lambda images, **kwargs: images
    head.forward = lambda images: network(images)[0]
