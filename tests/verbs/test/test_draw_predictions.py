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

from mmrepmlp.apis import draw_predictions, reparameterize_checkpoint
from mmrepmlp.verbs.infer.drawing import enlarge
from mmrepmlp.verbs.test.draw_predictions import RIGHT, WRONG, draw_classes, name_models


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
def test_both_forms_stand_side_by_side(short_run, tmp_path):
    report = reparameterize_checkpoint(short_run.config, short_run.checkpoint, tmp_path / "deploy.pth")
    forms = [short_run.checkpoint, report.checkpoint]
    draw_predictions(short_run.config, forms, tmp_path / "picture.png", images=2)
    picture = mmcv.imread(str(tmp_path / "picture.png"))
    assert picture.shape == (24 + 4 + 2 * (240 + 4), 4 * (304 + 4), 3)
    before, after = (picture[28:, x : x + 304] for x in (616, 924))
    assert (before == after).mean() > 0.98  # ties change places


@pytest.mark.slow
def test_classified_images_are_drawn_with_the_forms_of_both_checkpoints(trained, config, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("mmrepmlp.verbs.test.draw_predictions.draw_classes", record_call(drawn, draw_classes))
    report = reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "deploy.pth")
    draw_predictions(config, [trained.checkpoint, report.checkpoint], tmp_path / "picture.png", images=10)
    samples, titles, classes = drawn["arguments"]
    assert titles == ["training form", "deploy form"] and classes == tuple(map(str, range(10)))
    assert [int(training.gt_label) for training, _ in samples] == list(range(10))  # spread over the sorted test set
    for training, deployed in samples:
        torch.testing.assert_close(training.pred_score, deployed.pred_score, rtol=0, atol=1e-5)
    assert mmcv.imread(str(tmp_path / "picture.png")).std() > 10


def record_call(record: dict, function):
    """The same function, which stores its arguments."""

    def call(*arguments):
        record["arguments"] = arguments
        return function(*arguments)

    return call


def test_wrong_classes_are_marked(tmp_path):
    from mmpretrain.structures import DataSample

    mmcv.imwrite(np.zeros((8, 8, 3), np.uint8), str(tmp_path / "image.png"))

    def sample(score: list[float], label: int | None) -> DataSample:
        given = DataSample(metainfo=dict(img_path=str(tmp_path / "image.png"))).set_pred_score(torch.tensor(score))
        return given if label is None else given.set_gt_label(label)

    right, wrong, unknown = sample([0.9, 0.1], 0), sample([0.2, 0.8], 0), sample([0.2, 0.8], None)
    pairs = [(right, right), (right, wrong), (unknown, unknown)]
    figure = draw_classes(pairs, ["before", "after"], ["cat", "a dog with a very long name"])
    texts = [[(text.get_text(), text.get_color()) for text in axis.texts] for axis in figure.axes]
    dog = "a dog with a ve…, 80 %"
    assert texts[:3] == [
        [("truth: cat", "black"), ("before: cat, 90 %", RIGHT), ("after: cat, 90 %", RIGHT)],
        [("truth: cat", "black"), ("before: cat, 90 %", RIGHT), (f"after: {dog}", WRONG)],
        [("truth: unknown", "black"), (f"before: {dog}", "black"), (f"after: {dog}", "black")],
    ]
    assert [axis.get_frame_on() for axis in figure.axes[:4]] == [False, True, False, False]


def test_models_are_named_by_their_forms_or_their_files():
    both = ["training form", "deploy form"]
    assert name_models(["a.pth"], both[:1]) == ["prediction"]
    assert name_models(["a.pth", "b.pth"], both) == both
    assert name_models(["x/a.pth", "x/b.pth"], ["deploy form"] * 2) == ["a", "b"]


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
    assert (sample.gt_instances.bboxes.tensor == boxes).all() and sample.pred_instances.masks.shape == (1, 3, 5)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=tuple("abcdefghijklmno"))
    visualizer.add_datasample("", image, large, draw_gt=False)
    assert visualizer.get_image()[expected[0].bool()].any()
