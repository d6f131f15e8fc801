# SPDX-License-Identifier: Apache-2.0
"""Describe a config's test pipeline as plain data, for programs without its framework."""

import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from torch import nn

from mmrepmlp.export.normalization import Normalization
from mmrepmlp.verbs.config import innermost_dataset

# Arguments of the transforms that change an image.
ARGUMENTS = {
    "Resize": ("scale", "keep_ratio", "backend", "interpolation"),
    "ResizeEdge": ("scale", "edge", "backend", "interpolation"),
    "CenterCrop": ("crop_size",),
    "Pad": ("size", "size_divisor", "pad_to_square"),
}
# Starts of the names of transforms that load, pack, or change only annotations.
IGNORED = ("Load", "Pack", "Collect", "ReduceZero")


def describe_pipeline(cfg: Config) -> tuple[str, list[dict]]:
    """Describe how a config's test pipeline loads and transforms an image.

    Returns:
        The ``color_type`` of mmcv's ``LoadImageFromFile``, and the steps: the ``type`` of each transform and its
        arguments under mmcv's names. A transform that is not known here has only its ``type``.
    """
    color, steps, dataset, readers = None, [], innermost_dataset(cfg), []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        for settings in dataset.get("pipeline") or ():
            transform = TRANSFORMS.build(settings)
            name = type(transform).__name__
            if type(transform) is LoadImageFromFile and transform.imdecode_backend == "cv2":
                color = transform.color_type
            elif not name.startswith(IGNORED):
                steps.append(describe_transform(transform))
            elif name.startswith("Load") and "Annotation" not in name:
                readers.append(name)
    if color is None and dataset.get("pipeline"):
        steps.insert(0, {"type": f"{(readers or [dataset.get('type')])[0]} (how images are read)"})
    return color or "color", steps


def describe_transform(transform: object) -> dict:
    """Describe a transform as plain data; only by its ``type`` if it is not known here."""
    name = type(transform).__name__
    step = {argument: getattr(transform, argument, None) for argument in ARGUMENTS.get(name, ())}
    known = name in ARGUMENTS and not getattr(transform, "auto_pad", False)
    if name == "Pad":
        step["value"] = transform.pad_val.get("img", 0)
        known = transform.padding_mode == "constant" and not isinstance(
            step["value"], float
        )  # would pad only one channel
    if name == "Resize":
        known = transform.scale is not None
    return {"type": name, **step} if known else {"type": name}


def describe_padding(preprocessor: nn.Module, normalization: Normalization) -> list[dict]:
    """Describe how a data preprocessor pads test images, as a step before normalization; empty if it does not."""
    test_cfg = getattr(preprocessor, "test_cfg", None) or {}
    size = test_cfg.get("size")
    divisor = test_cfg.get("size_divisor") or getattr(preprocessor, "pad_size_divisor", None) or 1
    value = getattr(preprocessor, "pad_value", getattr(preprocessor, "pad_val", 0))
    return [padding(normalization, value, size, divisor)] if size or divisor > 1 else []


def padding(
    normalization: Normalization, value: float = 0.0, size: tuple[int, int] | None = None, divisor: int | None = None
) -> dict:
    """Describe the step that pads an image to a size, or to multiples, before normalization.

    Args:
        normalization: Normalization of the network.
        value: Value of the padding after normalization. Default: 0.0.
        size: Height and width. Default: None.
        divisor: Divisor of height and width. Default: None.
    """
    image = normalization.undo(torch.full((1, len(normalization.channels), 1, 1), float(value)))
    size, divisor = (size[::-1], None) if size else (None, divisor)
    return dict(type="Pad", size=size, size_divisor=divisor, pad_to_square=False, value=image.flatten().tolist())


def graph_size(model: nn.Module, steps: list[dict]) -> tuple[int, int] | None:
    """Return the height and width of the images that a model gets when tested; None if they depend on the image.

    These are the sides of its sliding window, if it has one, or those of an image after the steps.
    """
    test_cfg = getattr(model, "test_cfg", None) or {}
    window = test_cfg.get("crop_size") if test_cfg.get("mode") == "slide" else None
    return window or output_size(steps)


def output_size(steps: list[dict]) -> tuple[int, int] | None:
    """Return the height and width of an image after the steps; None if they depend on the image.

    Images are assumed to be at least as large as crops, and at most as large as the size that they are padded to.
    """
    size = None
    for step in steps:
        kind = step["type"]
        if kind == "Resize" and "scale" in step and not step["keep_ratio"]:
            size = tuple(step["scale"][::-1])
        elif kind == "CenterCrop" and "crop_size" in step:
            size = tuple(step["crop_size"][::-1])
        elif kind == "Pad" and "value" in step:
            size = tuple(step["size"][::-1]) if step["size"] else size
            if size and step["pad_to_square"]:
                size = (max(size), max(size))
            if size and step["size_divisor"]:
                size = tuple(-(-side // step["size_divisor"]) * step["size_divisor"] for side in size)
        else:
            size = None
    return size
