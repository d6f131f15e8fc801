# SPDX-License-Identifier: Apache-2.0
"""Draw predictions with the visualizers of the three frameworks."""

import inspect

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from torch import Tensor

PANEL_WIDTH = 304  # pixels, about; smaller images are enlarged by whole factors, to keep labels readable


def draw_sample(visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, score: float) -> np.ndarray:
    """Draw a prediction on its image, which is enlarged if it is small.

    Args:
        visualizer: Visualizer of the sample's framework.
        image: RGB image (H, W, 3), uint8.
        sample: The prediction.
        score: Lowest score of a detection to be drawn.

    Returns:
        RGB image, uint8.
    """
    image, sample = enlarge(image, sample, max(1, round(PANEL_WIDTH / image.shape[1])))
    if hasattr(visualizer, "visualize_cls"):
        return visualizer.visualize_cls(image, sample, draw_gt=False)
    known = inspect.signature(visualizer.add_datasample).parameters
    options = {"pred_score_thr": score} if "pred_score_thr" in known else {}
    visualizer.add_datasample("", image, sample, draw_gt=False, **options)
    return visualizer.get_image()


def enlarge(image: np.ndarray, sample: BaseDataElement, factor: int) -> tuple[np.ndarray, BaseDataElement]:
    """Enlarge an image and its predictions by an integer factor."""
    sample = sample.clone()
    for name, part in sample.items():
        if isinstance(part, PixelData):
            sample.set_field(PixelData(**{key: enlarge_maps(maps, factor) for key, maps in part.items()}), name)
        elif isinstance(part, InstanceData):
            part = part.clone()
            sample.set_field(part, name)
            if "bboxes" in part:
                part.bboxes = part.bboxes * factor
            if "masks" in part:
                part.masks = enlarge_maps(torch.as_tensor(part.masks), factor)
    return image.repeat(factor, 0).repeat(factor, 1), sample


def enlarge_maps(maps: Tensor, factor: int) -> Tensor:
    """Enlarge maps (..., H, W) by an integer factor."""
    return maps.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
