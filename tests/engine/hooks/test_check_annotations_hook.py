# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import mmdet.models
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from torch import nn

from mmrepmlp.apis import train
from mmrepmlp.engine.hooks.check_annotations_hook import AnnotationError, CheckAnnotationsHook
from mmrepmlp.verbs.explain import ExplainedError, explained
from tests.engine.annotated import (
    CROSS_ENTROPY,
    begun_test,
    boxed,
    check,
    classified,
    classifier,
    detector,
    refusal,
    run_of,
    segmentor,
    started,
)
from tests.fixtures import CONFIG

SIGMOID = dict(type="CrossEntropyLoss", use_sigmoid=True)
DICE = dict(type="DiceLoss")


def pixels(*values: int) -> SegDataSample:
    sample = SegDataSample(metainfo=dict(img_shape=(1, len(values)), seg_map_path="some.png"))
    sample.gt_sem_seg = PixelData(data=torch.tensor(values).view(1, 1, -1))
    return sample


def boxes(labels: list[int], ignored: list[int] = ()) -> DetDataSample:
    def instances(labels):
        corners = torch.tensor([[0.0, 0.0, 16.0, 16.0], [16.0, 16.0, 31.0, 31.0]])
        return InstanceData(bboxes=corners[: len(labels)], labels=torch.tensor(labels, dtype=torch.long))

    sample = DetDataSample(metainfo=dict(img_path="0.png", img_shape=(32, 32)))
    sample.gt_instances, sample.ignored_instances = instances(labels), instances(ignored)
    return sample


def image(label: object, **scores) -> DataSample:
    sample = DataSample(metainfo=dict(img_path="0.png")).set_gt_label(label)
    return sample.set_gt_score(torch.tensor(scores["scores"])) if scores else sample


def agrees(loss: Callable, model: nn.Module, *samples: object) -> bool:
    """Whether the check refuses what a framework's loss cannot compute, and nothing else."""
    trains = True
    try:
        loss()
    except (AssertionError, IndexError, RuntimeError):
        trains = False
    return bool(refusal(check, model, *samples)) != trains


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
def test_labels_of_pixels(num_classes, loss, ignore_index):
    model = segmentor(num_classes, loss, ignore_index=ignore_index)
    for value in (1, 2, 3, 254, 255):
        sample = pixels(0, 1, value)
        scores = torch.zeros(1, num_classes, 1, 3)
        assert agrees(lambda: model.decode_head.loss_by_feat(scores, [sample]), model, sample), value  # noqa: B023


@pytest.mark.parametrize("loss", [DICE, CROSS_ENTROPY])
def test_only_losses_of_the_pixels_count(loss):
    """The second loss of an EncHead is a cross entropy, but of the classes in the image, which any label can have."""
    model = segmentor(2, loss, type="EncHead", in_channels=[4, 4, 4], in_index=[0, 1, 2], num_codes=2)
    scores = (torch.zeros(1, 2, 1, 3), torch.zeros(1, 2))
    for value in (1, 2, 255):
        sample = pixels(0, 1, value)
        assert agrees(lambda: model.decode_head.loss_by_feat(scores, [sample]), model, sample)  # noqa: B023


@pytest.mark.parametrize(
    "loss, refused",
    [
        (CROSS_ENTROPY, True),
        (SIGMOID, False),
        (DICE, False),
        (dict(type="DiceLoss", use_sigmoid=False), False),  # which leaves softmax out
        (dict(type="TverskyLoss"), True),
        (dict(type="OhemCrossEntropy"), True),
        (dict(type="LovaszLoss", loss_type="binary", reduction="none"), False),
        ([SIGMOID | dict(loss_name="loss_a"), CROSS_ENTROPY], True),
    ],
)
@pytest.mark.parametrize("settings", [dict(num_classes=1), dict(num_classes=2, out_channels=1)])
def test_softmax_over_a_single_channel(loss, refused, settings):
    single, main = segmentor(loss=loss, **settings), segmentor(2)
    text = "has a single channel, and softmax makes it 1 everywhere"
    assert (f"model.decode_head {text}" in refusal(started, single)) == refused
    main.auxiliary_head = nn.ModuleList([single.decode_head])
    assert (f"model.auxiliary_head.0 {text}" in refusal(started, main)) == refused


def test_a_classifier_of_one_class():
    assert "model.head has a single channel" in refusal(started, classifier(1))
    assert not refusal(started, classifier(1, "MultiLabelLinearClsHead"))


def test_a_single_class_whose_metric_counts_the_background(caplog):
    """mmsegmentation counts by a histogram of one bin, which takes what is outside of it as well."""
    right, whole, *_ = IoUMetric.intersect_and_union(torch.zeros(10), torch.tensor([0.0] * 8 + [1.0] * 2), 1, 255)
    assert right == 8 and whole == 12
    names = dict(classes=("thing",), palette=[[1, 2, 3]])
    begun_test(segmentor(1, SIGMOID), BaseSegDataset(lazy_init=True, metainfo=names), {})
    assert ["num_classes=2 and model.decode_head.out_channels=1" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.parametrize("values, said", [((0, 255), 1), ((0, 1, 255), 0), ((0, 0), 0)])
def test_masks_of_0_and_255_train_nothing(caplog, values, said):
    check(segmentor(2), *[pixels(*values)] * 45)
    assert ["0 and 255, divide the numbers by 255" in r.getMessage() for r in caplog.records] == [True] * said


class Trained(nn.Module):
    """A segmentor at its loss."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.auxiliary_head = head

    def forward(self, scores: torch.Tensor, samples: list) -> dict:
        return self.auxiliary_head.loss_by_feat(scores, samples)


def test_a_label_that_an_auxiliary_head_lacks_is_explained():
    model, samples = Trained(segmentor(3).decode_head), [pixels(0, 1, 3)]
    message = r"There is a label 3, but model\.auxiliary_head\.num_classes=3\. Increase it"
    with pytest.raises(ExplainedError, match=message), explained(Config()):
        model(torch.zeros(1, 3, 1, 3), samples)


def test_what_is_said_names_file_head_and_setting():
    said = refusal(check, segmentor(2), pixels(0, 255), pixels(7))
    assert said.startswith("some.png has labels of class 7, but model.decode_head has classes 0 to 1 and ignores 255. ")
    assert "num_classes" in said and "check_annotations=False" in said
    said = refusal(check, detector(1), boxes([0]), boxes([0, 1]))
    assert said.startswith("0.png has labels of class 1, but model.bbox_head has classes 0 to 0.")


@pytest.mark.parametrize("head", ["LinearClsHead", "MultiLabelLinearClsHead"])
@pytest.mark.parametrize("scores", [{}, dict(scores=[0.5, 0.5])])
def test_labels_of_images(head, scores):
    model = classifier(2, head)
    for label in (0, 1, 2, 7):
        samples = [image([label], **scores)]
        assert agrees(lambda: model.head.loss((torch.zeros(1, 4),), samples), model, *samples)  # noqa: B023


@pytest.mark.parametrize("ignored", [False, True])
def test_labels_of_boxes(ignored):
    model, features = detector(1), [torch.rand(1, 4, side, side) for side in (8, 4, 2, 1, 1)]
    for label in (0, 2, 7):
        sample = boxes([0], [label]) if ignored else boxes([0, label])
        assert agrees(lambda: model.bbox_head.loss(features, [sample]), model, sample)  # noqa: B023


def test_models_whose_scores_are_not_of_the_labels():
    """Proposals have no class, to CrowdDet all boxes are persons, and text-conditioned models score words."""
    proposals, persons, words = detector(1), detector(1), detector(1)
    proposals.__class__, persons.__class__ = mmdet.models.RPN, mmdet.models.CrowdDet
    words.language_model = nn.Identity()
    for model in (proposals, persons, words):
        check(model, boxes([3]))


@pytest.mark.parametrize("part", ["", "head", "head.loss_module", "data_preprocessor"])
def test_models_of_others_may_read_labels_differently(part):
    model = classifier(2)
    owned = model.get_submodule(part)
    owned.__class__ = type("Own", (type(owned),), dict(__module__=__name__))
    check(model, image(5))


@pytest.mark.parametrize("model", [classifier(2), segmentor(2), detector(1), nn.Linear(1, 1)])
def test_what_is_not_understood_passes(model):
    check(model, None, 3, dict(gt_label=9), DataSample(), SegDataSample(), DetDataSample(gt_instances=InstanceData()))
    for data in (None, [1, 2], dict(data_samples=dict(student=[image(9)]))):
        started(model).before_train_iter(run_of(model), 0, data)


class Odd(BaseDataset):
    """A dataset whose classes are of no known kind."""

    def load_data_list(self):
        return [dict()]


@pytest.mark.parametrize("dataset", [[1, 2, 3], None, Odd(), Odd(metainfo=dict(classes=3)), RepeatDataset(Odd(), 2)])
def test_datasets_of_others_pass(dataset, caplog):
    started(classifier(2), dataset)
    assert not caplog.records


@pytest.mark.parametrize(
    "classes, wrong",
    [
        (None, False),
        (["a", "b"], False),
        (["b", "a"], True),
        (["b", "c"], True),  # b is the name of the second folder
        (["A", "B"], False),  # readable names for folders with other ones
        (["A", "b"], False),
    ],
)
def test_folders_are_numbered_alphabetically(tmp_path, caplog, classes, wrong):
    started(classifier(2), RepeatDataset(classified(tmp_path, "b", "a", classes=classes), 2))
    message = (
        f"{tmp_path} numbers the classes in the order ['a', 'b'], but the config names them in the order {classes}."
    )
    assert [record.getMessage().startswith(message) for record in caplog.records] == [True] * wrong
    (tmp_path / "list.txt").write_text("a/0.png 0\nb/0.png 1\n")  # the numbers are in the file
    started(classifier(2), classified(tmp_path, ann_file="list.txt", classes=["b", "a"]))
    assert len(caplog.records) == wrong


def test_names_of_no_category(tmp_path, caplog):
    unmatched = boxed(tmp_path, "A", "B")
    assert "coco.json is in metainfo.classes=['A', 'B']: no box is used" in refusal(started, detector(2), unmatched)
    # One that has none of the objects, beside others.
    started(detector(2), ConcatDataset([boxed(tmp_path, "a", "b"), unmatched], ignore_keys=["classes"]))
    assert [record.getMessage().endswith("no box is used.") for record in caplog.records] == [True]


def test_no_annotation_file_is_read_again(tmp_path):
    dataset = boxed(tmp_path, "a")
    (tmp_path / "coco.json").unlink()
    started(detector(2), dataset)


def test_a_training_stops_at_the_first_batch_unless_the_config_says_otherwise(options, tmp_path):
    settings = {**options, "model.head.num_classes": 3, "train_cfg.max_epochs": 1}
    with pytest.raises(AnnotationError, match=r"\.png has labels of class \d, but model\.head has classes 0 to 2\."):
        train(CONFIG, str(tmp_path), cfg_options=settings)
    with pytest.raises(AssertionError, match="Class Index"):
        train(CONFIG, str(tmp_path), cfg_options={**settings, "check_annotations": False})


def test_a_setting_without_effect_says_so():
    with pytest.warns(UserWarning, match="samples has no effect"):
        CheckAnnotationsHook(samples=10)
