# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData, PixelData

from mmrepmlp.verbs.infer.drawing import enlarge


def test_boxes_masks_and_maps_grow_with_the_image():
    masks = np.zeros((1, 3, 5), np.uint8)
    masks[0, 1, 2:4] = 1
    labels = dict(labels=torch.tensor([1]), scores=torch.tensor([0.9]))
    boxes = torch.tensor([[2.0, 1.0, 4.0, 2.0]])
    sample = DetDataSample(
        pred_instances=InstanceData(bboxes=boxes, masks=torch.from_numpy(masks).bool(), **labels),
        pred_panoptic_seg=PixelData(sem_seg=torch.arange(15).view(1, 3, 5)),
    )
    image, large = enlarge(np.zeros((3, 5, 3), np.uint8), sample, 2)
    assert image.shape == (6, 10, 3) and (large.pred_instances.bboxes == 2 * boxes).all()
    expected = torch.from_numpy(cv2.resize(masks[0], (10, 6), interpolation=cv2.INTER_NEAREST))[None]
    assert (large.pred_instances.masks == expected).all()
    assert (large.pred_panoptic_seg.sem_seg[:, 1::2, 1::2] == torch.arange(15).view(1, 3, 5)).all()
    assert (sample.pred_instances.bboxes == boxes).all() and sample.pred_instances.masks.shape == (1, 3, 5)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=tuple("abcdefghijklmno"))
    visualizer.add_datasample("", image, large, draw_gt=False)
    assert visualizer.get_image()[expected[0].bool()].any()
