# SPDX-License-Identifier: Apache-2.0
"""``mmrepmlp deploy --raw``: the plain network of a checkpoint as one ONNX file."""

from pathlib import Path

from mmrepmlp.checkpoint import load_from_local, unwrap
from mmrepmlp.export import OnnxReport, export_onnx
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model, image_size


def export_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    size: tuple[int, int] | None = None,
    ema: bool = False,
    cfg_options: dict | None = None,
    allow_unsafe: bool = False,
    **options: object,
) -> OnnxReport:
    """Export a checkpoint to ONNX, verified with ONNX Runtime.

    Args:
        config: Config of the model: a classifier or segmentor; of any other model, ``part`` exports feature maps.
        checkpoint: Checkpoint of the model. Both may be in training form or in deploy form.
        out: The file to write.
        size: Height and width of the images in pixels. Default: the backbone's ``img_size``.
        ema: Whether to use the weights averaged over the training. Default: False.
        cfg_options: Settings to override, by dotted names. Default: None.
        allow_unsafe: Whether to run code that the checkpoint holds. Default: False.
        **options: Further arguments of :func:`mmrepmlp.export.export_onnx`: ``batch``, ``dynamic``, ``opset``,
            ``part``, ``deploy``, ``tolerance``, ``overwrite``.

    Raises:
        CheckpointError: The checkpoint cannot be read, or contains code.
        ValueError: The checkpoint does not belong to the config's model, or an argument is out of its range.
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        ExportError: The export failed, or the graph's outputs differ from the model's.
    """
    state = unwrap(load_from_local(checkpoint, allow_unsafe=allow_unsafe), ema)
    model = build_model(read_config(config, cfg_options), state)
    return export_onnx(model, out, size or image_size(model), **options)
