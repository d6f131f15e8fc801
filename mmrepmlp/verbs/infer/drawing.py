# SPDX-License-Identifier: Apache-2.0
"""Draw predictions with the visualizers of the three frameworks."""

import inspect

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from torch import Tensor

PANEL_WIDTH = 304  # pixels; smaller images are enlarged to keep labels readable


def draw_sample(
    visualizer: Visualizer,
    image: np.ndarray,
    sample: BaseDataElement,
    score: float,
    truth: bool = False,
    labels: bool = True,
) -> np.ndarray:
    """Draw a sample's prediction or its ground truth on an image, enlarged if it is small.

    Args:
        visualizer: The framework's visualizer, with its ``dataset_meta``.
        image: RGB, shape (H, W, 3), uint8.
        sample: The sample, on the CPU.
        score: Score from which on detections are drawn.
        truth: Whether to draw the ground truth. Default: False.
        labels: Whether to write the names of classes into segmented images. Default: True.

    Returns:
        RGB, uint8.
    """
    image, sample = enlarge(image, sample, factor_of(image))
    draw = getattr(visualizer, "visualize_cls", None)
    options = dict(draw_gt=truth, draw_pred=not truth)
    if draw is None:
        known = inspect.signature(visualizer.add_datasample).parameters
        more = dict(with_labels=labels, pred_score_thr=score)
        options |= {name: value for name, value in more.items() if name in known}
        visualizer.add_datasample("", image, sample, **options)
    else:
        draw(image, sample, **options)
    return visualizer.get_image()


def factor_of(image: np.ndarray) -> int:
    """By which factor an image is enlarged: it is then about PANEL_WIDTH pixels wide, or wider if it was."""
    return max(1, round(PANEL_WIDTH / image.shape[1]))


def enlarge(image: np.ndarray, sample: BaseDataElement, factor: int) -> tuple[np.ndarray, BaseDataElement]:
    """Enlarge an image and its annotations and predictions by an integer factor."""
    sample = sample.clone()
    for name, part in sample.items():
        if isinstance(part, PixelData):
            sample.set_field(PixelData(**{key: enlarge_maps(maps, factor) for key, maps in part.items()}), name)
        elif isinstance(part, InstanceData):
            part = part.clone()
            sample.set_field(part, name)
            if "bboxes" in part:
                part.bboxes = getattr(part.bboxes, "tensor", part.bboxes) * factor
            if "masks" in part:
                masks = part.masks.to_ndarray() if hasattr(part.masks, "to_ndarray") else part.masks
                part.masks = enlarge_maps(torch.as_tensor(masks), factor)
    return image.repeat(factor, 0).repeat(factor, 1), sample


def enlarge_maps(maps: Tensor, factor: int) -> Tensor:
    """Enlarge maps, shape (..., H, W), by an integer factor."""
    return maps.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
