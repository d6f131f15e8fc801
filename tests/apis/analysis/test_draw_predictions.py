# SPDX-License-Identifier: Apache-2.0
import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData, PixelData

from mmrepmlp.apis import draw_predictions
from mmrepmlp.apis.drawing import enlarge


@pytest.mark.slow
def test_picture_shows_image_truth_and_prediction(short_run, tmp_path):
    draw_predictions(short_run.config, short_run.checkpoint, tmp_path / "picture.png", images=2)
    picture = mmcv.imread(str(tmp_path / "picture.png"))
    assert picture.shape == (24 + 4 + 2 * (240 + 4), 3 * (304 + 4), 3)
    image = mmcv.imread(sorted(str(p) for p in (short_run.folder / "scenes").rglob("val/00000.jpg"))[0])
    first, truth = (picture[28 : 28 + 240, x : x + 304] for x in (0, 308))
    assert (first == image.repeat(2, 0).repeat(2, 1)).all()
    assert (truth != first).any()


@pytest.mark.slow
def test_classifiers_are_refused(trained, config, tmp_path):
    with pytest.raises(ValueError, match="The model predicts .*pred_label.*: expected a segmentor or detector"):
        draw_predictions(config, trained.checkpoint, tmp_path / "picture.png")


def test_boxes_masks_and_maps_grow_with_the_image():
    masks = np.zeros((1, 3, 5), np.uint8)
    masks[0, 1, 2:4] = 1
    labels = dict(labels=torch.tensor([1]), scores=torch.tensor([0.9]))
    boxes = torch.tensor([[2.0, 1.0, 4.0, 2.0]])
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=HorizontalBoxes(boxes), masks=BitmapMasks(masks, 3, 5), **labels),
        pred_instances=InstanceData(masks=torch.from_numpy(masks).bool(), **labels),
        pred_panoptic_seg=PixelData(sem_seg=torch.arange(15).view(1, 3, 5)),
    )
    image, large = enlarge(np.zeros((3, 5, 3), np.uint8), sample, 2)
    assert image.shape == (6, 10, 3) and (large.gt_instances.bboxes == 2 * boxes).all()
    expected = torch.from_numpy(cv2.resize(masks[0], (10, 6), interpolation=cv2.INTER_NEAREST))[None]
    assert (large.gt_instances.masks == expected).all() and (large.pred_instances.masks == expected).all()
    assert (large.pred_panoptic_seg.sem_seg[:, 1::2, 1::2] == torch.arange(15).view(1, 3, 5)).all()
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=tuple("abcdefghijklmno"))
    visualizer.add_datasample("", image, large, draw_gt=False)
    assert visualizer.get_image()[expected[0].bool()].any()
