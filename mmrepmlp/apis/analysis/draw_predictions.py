# SPDX-License-Identifier: Apache-2.0
"""Draw predictions of a segmentor or detector: image, ground truth and prediction side by side."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from mmrepmlp.apis.config import read_config, require
from mmrepmlp.apis.drawing import draw_sample, enlarge, factor_of
from mmrepmlp.apis.model import build_model
from mmrepmlp.checkpoint import atomic_write, load_from_local, unwrap

GAP = 4
TITLES = ("image", "truth", "prediction")


@torch.no_grad()
def draw_predictions(
    config: str | Path, checkpoint: str | Path, out: str | Path, images: int = 6, score: float = 0.5
) -> None:
    """Draw the first test images of a config, one row each: image, ground truth, prediction.

    Args:
        config: Config of a segmentor or detector.
        checkpoint: Its checkpoint.
        out: Picture to write, PNG.
        images: Number of images. Default: 6.
        score: Score threshold of detections. Default: 0.5.

    Raises:
        ValueError: The config has no test set or no visualizer, or is of a classifier.
    """
    cfg = read_config(config)
    require(cfg, "test_dataloader", "visualizer")
    model = build_model(cfg, unwrap(load_from_local(checkpoint)))
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        visualizer = VISUALIZERS.build({**cfg.visualizer, "name": str(out), "vis_backends": None})
        visualizer.dataset_meta = dataset.metainfo
        rows = []
        for index in range(min(images, len(dataset))):
            (sample,) = model.test_step(pseudo_collate([dataset[index]]))
            rows.append(draw_row(visualizer, sample.cpu(), score))
    with atomic_write(out) as temporary:
        temporary.write_bytes(cv2.imencode(".png", stack([draw_titles(rows[0]), *rows], 0))[1].tobytes())


def draw_row(visualizer: Visualizer, sample: BaseDataElement, score: float) -> np.ndarray:
    """Image, ground truth and prediction of a sample side by side, BGR.

    Raises:
        ValueError: The sample holds neither a map nor objects.
    """
    if not {"pred_sem_seg", "pred_panoptic_seg", "pred_instances"} & set(sample.keys()):
        raise ValueError(f"The model predicts {', '.join(sample.keys())}: expected a segmentor or detector.")
    image = mmcv.imread(sample.img_path, channel_order="rgb")
    panels = [enlarge(image, sample, factor_of(image))[0]]
    panels += [draw_sample(visualizer, image, sample, score, truth, labels=False) for truth in (True, False)]
    return stack(panels, 1)[..., ::-1]


def draw_titles(row: np.ndarray) -> np.ndarray:
    """A header with the columns' titles, as wide as a row."""
    strip = np.full((24, row.shape[1], 3), 255, np.uint8)
    for column, title in enumerate(TITLES):
        place = (column * row.shape[1] // len(TITLES) + 6, 17)
        cv2.putText(strip, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def stack(panels: list[np.ndarray], axis: int) -> np.ndarray:
    """Concatenate pictures with white gaps between them; shorter sides are padded with white."""
    other_axis = 1 - axis
    longest = max(panel.shape[other_axis] for panel in panels)
    padded = []
    for panel in panels:
        margin = [(0, 0)] * 3
        margin[other_axis] = (0, longest - panel.shape[other_axis])
        margin[axis] = (0, GAP)
        padded.append(np.pad(panel, margin, constant_values=255))
    return np.concatenate(padded, axis)
