# SPDX-License-Identifier: Apache-2.0
import json
from functools import partial

import cv2
import mmdet.models
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from mmcv.transforms import KeyMapper, RandomApply
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import BaseDataset, ConcatDataset, DefaultSampler, RepeatDataset, pseudo_collate
from mmengine.structures import PixelData
from mmpretrain.datasets import CustomDataset, KFoldDataset, MultiLabelDataset
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils.data import SequentialSampler

from mmrepmlp.engine.annotations import AnnotationError
from tests.engine.annotated import CROSS_ENTROPY, classifier, detector, run, segmentor

SIGMOID = dict(type="CrossEntropyLoss", use_sigmoid=True)
DICE = dict(type="DiceLoss")
LOAD_BOXES = [
    dict(type="mmdet.LoadAnnotations", box_type=None),
    dict(type="mmdet.PackDetInputs", meta_keys=["img_shape"]),
]


@pytest.fixture
def segmentation(tmp_path):
    """Class maps with classes 0 and 1 and pixels to ignore; the fourth of five has a pixel of class 7."""
    for folder in ("img", "ann"):
        (tmp_path / folder).mkdir()
    for i in range(5):
        class_map = np.zeros((4, 6), np.uint8)
        class_map[0] = 1
        class_map[1] = 255
        class_map[2, 2] = 7 if i == 3 else 0
        cv2.imwrite(str(tmp_path / f"img/{i}.png"), np.zeros((4, 6, 3), np.uint8))
        cv2.imwrite(str(tmp_path / f"ann/{i}.png"), class_map)
    return BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path="img", seg_map_path="ann"),
        img_suffix=".png",
        metainfo=dict(classes=("a", "b")),
        pipeline=[dict(type="mmseg.LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
    )


def test_class_maps_are_read_before_training(segmentation):
    with pytest.raises(AnnotationError, match=r"ann/3\.png has 1 pixels of class 7, .* classes 0 to 1 and .* 255\. "):
        run(segmentation, segmentor(2))
    with pytest.raises(AnnotationError, match="class 7.*check_annotations=False"):
        run(RepeatDataset(segmentation, 2), segmentor(2))
    run(segmentation, segmentor(8))
    run(segmentation, segmentor(2), samples=2)  # the first and the last


@pytest.mark.parametrize(
    "values, likely", [((0, 255), True), ((0, 1, 255), False), ((0, 1), False), ((0,), False), ((255,), True)]
)
def test_masks_of_what_is_ignored(segmentation, tmp_path, caplog, values, likely):
    for file in (tmp_path / "ann").iterdir():
        cv2.imwrite(str(file), np.resize(np.array(values, np.uint8), (4, 6)))
    run(segmentation, segmentor(2))
    known = f"no other label than {' and '.join(map(str, values))}, of which 255 is ignored"
    assert [known in record.getMessage() for record in caplog.records] == [True] * likely


def batch(values: torch.Tensor) -> dict:
    sample = SegDataSample(metainfo=dict(seg_map_path="some.png"))
    sample.gt_sem_seg = PixelData(data=values)
    return dict(inputs=[], data_samples=[sample])


def test_other_class_maps_are_checked_as_they_come(segmentation):
    hook = run(segmentation, segmentor(2), samples=2)
    for value in (0, 1, 255):
        hook.before_train_iter(None, 0, batch(torch.full((1, 4, 6), value)))
    with pytest.raises(AnnotationError, match=r"some\.png has 24 pixels of class 2"):
        hook.before_train_iter(None, 0, batch(torch.full((1, 4, 6), 2)))


def agrees(loss, check) -> bool:
    """Whether a check refuses what a framework's loss cannot compute, and nothing else."""
    trains = refused = True
    try:
        loss()
    except (AssertionError, IndexError, RuntimeError):
        trains = False
    try:
        check()
        refused = False
    except AnnotationError:
        pass
    return refused != trains


def assert_check_agrees_with_loss(dataset, model, scores):
    hook = run(dataset, model, samples=0)
    for value in (1, 2, 3, 254, 255):
        data = batch(torch.tensor([0, 1, value]).view(1, 1, 3))
        assert agrees(
            lambda: model.decode_head.loss_by_feat(scores, data["data_samples"]),  # noqa: B023
            lambda: hook.before_train_iter(None, 0, data),  # noqa: B023
        ), value


# What the loss does on labels 0 and 1 and one more is what the check has to say.
@pytest.mark.parametrize(
    "num_classes, loss",
    [
        (1, SIGMOID),
        (2, CROSS_ENTROPY),
        (3, SIGMOID),
        (4, CROSS_ENTROPY),
        (3, DICE),
        (3, [DICE, CROSS_ENTROPY | dict(avg_non_ignore=True)]),
    ],
)
@pytest.mark.parametrize("ignore_index", [254, 255])
def test_the_check_agrees_with_the_loss(segmentation, num_classes, loss, ignore_index):
    model = segmentor(num_classes, loss, ignore_index=ignore_index)
    assert_check_agrees_with_loss(segmentation, model, torch.zeros(1, num_classes, 1, 3))


@pytest.mark.parametrize("loss", [DICE, CROSS_ENTROPY])
def test_only_losses_of_the_pixels_count(segmentation, loss):
    """The second loss of an EncHead is a cross entropy, but of the classes in the image, which any label can have."""
    model = segmentor(2, loss, type="EncHead", in_channels=[4, 4, 4], in_index=[0, 1, 2], num_codes=2)
    assert_check_agrees_with_loss(segmentation, model, (torch.zeros(1, 2, 1, 3), torch.zeros(1, 2)))


class OwnAnnotations(LoadAnnotations):
    """A loader of somebody else."""

    def transform(self, results):
        raise RuntimeError("not before training")


def test_pipelines_of_others_are_left_to_themselves(segmentation):
    load = segmentation.pipeline.transforms[1]
    segmentation.pipeline.transforms[1] = OwnAnnotations()
    run(segmentation, segmentor(2))
    segmentation.pipeline.transforms[1:] = [load, lambda results: results]  # may give the labels another meaning
    run(segmentation, segmentor(2))
    segmentation.pipeline.transforms[1:] = [load, RandomApply([lambda results: results])]
    run(segmentation, segmentor(2))
    del segmentation.pipeline.transforms[1:]
    run(segmentation, segmentor(2))


def test_labels_of_a_classification_data_set(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((4, 4, 3), np.uint8))
    named = CustomDataset(data_root=str(tmp_path))
    with pytest.raises(AnnotationError, match=r"c/0\.png is of class 2, but model\.head has classes 0 to 1\. Set"):
        run(named, classifier(2))
    run(named, classifier(3))
    (tmp_path / "list.txt").write_text("a/0.png 0\nb/0.png 4\n")
    listed = CustomDataset(data_root=str(tmp_path), ann_file="list.txt")
    with pytest.raises(AnnotationError, match=r"b/0\.png is of class 4, .* 0 to 2\. Set model\.head\.num_classes=5"):
        run(listed, classifier(3))
    run(CustomDataset(data_root=str(tmp_path), with_label=False), classifier(2))


class Listed(BaseDataset):
    """A data set of the data that it is given, labels of three classes if nothing else is said."""

    def __init__(self, data=(dict(gt_label=0), dict(gt_label=2)), **settings):
        self.data = data
        super().__init__(metainfo=dict(classes=("a", "b", "c")), serialize_data=False, **settings)

    def load_data_list(self):
        return [dict(info) for info in self.data]


def test_labels_of_several_classes(tmp_path):
    images = [dict(img_path=f"{i}.png", gt_label=labels) for i, labels in enumerate([[0], [1, 2], [], [2, 0, 1]])]
    (tmp_path / "list.json").write_text(json.dumps(dict(metainfo=dict(classes="abc"), data_list=images)))
    dataset = MultiLabelDataset(ann_file=str(tmp_path / "list.json"))
    run(dataset, classifier(3, "MultiLabelLinearClsHead"))
    with pytest.raises(AnnotationError, match=r"1\.png is of class 2, .* 0 to 1\. Set model\.head\.num_classes=3"):
        run(dataset, classifier(2, "MultiLabelLinearClsHead"))


@pytest.mark.parametrize(
    "head",
    [dict(head="LinearClsHead"), dict(head="MultiLabelLinearClsHead"), dict(head="CSRAClsHead", num_heads=1, lam=0.1)],
    ids=lambda head: head["head"],
)
@pytest.mark.parametrize("score", [{}, dict(gt_score=[0.5, 0.5])])
def test_what_a_head_takes_as_its_target_is_checked(head, score):
    model, features = classifier(2, **head), torch.zeros(1, 4, *([1, 1] if "lam" in head else []))
    for label in (0, 1, 2, 7):
        dataset = Listed([dict(gt_label=label, **score)], pipeline=[dict(type="mmpretrain.PackInputs", input_key="")])
        samples = [dataset[0]["data_samples"]]
        assert agrees(lambda: model.head.loss((features,), samples), lambda: run(dataset, model))  # noqa: B023


def subclass(kind: type, **members) -> type:
    """A class as a user defines it: its module is this one."""
    return type("Own", (kind,), dict(__module__=__name__, **members))


@pytest.mark.parametrize(
    "dataset",
    [
        Listed(),
        Listed(pipeline=[RandomApply([])]),
        RepeatDataset(Listed(), 2),
        ConcatDataset([Listed([dict(gt_label=0)]), Listed()]),
        KFoldDataset(dict(type=Listed), num_splits=2, fold=0),
    ],
)
def test_wrappers_of_the_frameworks_are_looked_into(dataset):
    with pytest.raises(AnnotationError, match="class 2"):
        run(dataset, classifier(2))


@pytest.mark.parametrize(
    "dataset",
    [
        Listed(indices=1),
        KFoldDataset(dict(type=Listed), num_splits=2, fold=1),
        Listed(pipeline=[lambda info: info]),
        Listed(pipeline=[KeyMapper([], mapping=dict(gt_label="coarse_label"), auto_remap=False)]),
        subclass(Listed, prepare_data=lambda self, index: dict(gt_label=0))(),
        subclass(Listed, __getitem__=lambda self, index: dict(gt_label=0))(),
        subclass(Listed, get_data_info=lambda self, index: dict(gt_label=0))(),
        subclass(RepeatDataset)(Listed(), 2),
    ],
)
def test_labels_that_may_not_reach_the_model_pass(dataset):
    run(dataset, classifier(2))


def test_loaders_of_others_may_pick_images_and_change_labels():
    for loader in (dict(sampler=subclass(SequentialSampler)([])), dict(collate_fn=lambda batch: batch)):
        run(Listed(), classifier(2), loader)
    with pytest.raises(AnnotationError, match="class 2"):
        run(Listed(), classifier(2), dict(sampler=DefaultSampler([]), collate_fn=partial(pseudo_collate)))


@pytest.mark.parametrize("part", ["", "head", "head.loss_module", "data_preprocessor"])
def test_models_of_others_may_read_labels_differently(part):
    model = classifier(2)
    owned = model.get_submodule(part)
    owned.__class__ = subclass(type(owned))
    run(Listed(), model)


class Odd(BaseDataset):
    """A data set whose samples are of no known kind."""

    def load_data_list(self):
        return [dict(gt_label=label) for label in (None, 0.5, "seven", dict(task=9), [[1], [2, 3]], object)]


@pytest.mark.parametrize("model", [classifier(1), segmentor(2), detector(1), nn.Linear(1, 1)])
def test_what_is_not_understood_passes(model):
    run(Odd(serialize_data=False), model)
    run([1, 2, 3], model)
    run(None, model)


def test_labels_of_boxes(detection):
    run(detection, detector(2))
    with pytest.raises(AnnotationError, match=r"0\.png has boxes of class 1, 'b', .*model\.bbox_head\.num_classes=2"):
        run(detection, detector(1))


@pytest.mark.parametrize("ignored", [0, 1])
def test_boxes_that_are_ignored_may_have_any_label(ignored):
    model, features = detector(1), [torch.rand(1, 4, side, side) for side in (8, 4, 2, 1, 1)]
    for label in (0, 2, 7):
        boxes = [dict(bbox=[0, 0, 16, 16], bbox_label=0, ignore_flag=0)]
        boxes += [dict(bbox=[16, 16, 31, 31], bbox_label=label, ignore_flag=ignored)]
        dataset = Listed([dict(instances=boxes, img_shape=(32, 32))], pipeline=LOAD_BOXES)
        samples = [dataset[0]["data_samples"]]
        assert agrees(lambda: model.bbox_head.loss(features, samples), lambda: run(dataset, model))  # noqa: B023


def test_labels_without_a_name():
    with pytest.raises(AnnotationError, match="has boxes of class 7 but .*num_classes=8"):
        run(Listed([dict(instances=[dict(bbox_label=7)])]), detector(2))


def test_transforms_of_others_in_a_wrapper(detection):
    own = MultiImageMixDataset(detection, [])
    with pytest.raises(AnnotationError, match="class 1"):
        run(own, detector(1))
    own.pipeline.append(lambda results: results)
    run(own, detector(1))


def test_models_whose_scores_are_not_of_the_labels(detection):
    """Proposals have no class, to CrowdDet all boxes are persons, and text-conditioned models score words."""
    proposals, persons, words = detector(1), detector(1), detector(1)
    proposals.__class__, persons.__class__ = mmdet.models.RPN, mmdet.models.CrowdDet
    words.language_model = nn.Identity()
    for model in (proposals, persons, words):
        run(detection, model)
