# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.export import ExportError
from mmrepmlp.export.prediction import PredictionNetwork, Task, class_error, task_of
from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.model import build_untrained
from tests.conftest import TINY

BACKBONE = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, out_indices=(0, 1, 2, 3))
COLORS = dict(mean=[1.0, 2.0, 3.0], std=[10.0, 20.0, 30.0])


def classifier(**head):
    return dict(
        default_scope="mmpretrain",
        data_preprocessor=dict(num_classes=5, to_rgb=True, **COLORS),
        model=dict(
            type="ImageClassifier",
            backbone={**BACKBONE, "out_indices": (3,)},
            neck=dict(type="GlobalAveragePooling"),
            head=dict(num_classes=5, in_channels=64, **head),
        ),
    )


def segmentor(**head):
    return dict(
        default_scope="mmseg",
        model=dict(
            type="EncoderDecoder",
            data_preprocessor=dict(type="SegDataPreProcessor", bgr_to_rgb=True, **COLORS),
            backbone=BACKBONE,
            decode_head=dict(
                type="FCNHead", in_channels=64, in_index=3, channels=8, num_convs=1, norm_cfg=dict(type="BN"), **head
            ),
            test_cfg=dict(mode="whole"),
        ),
    )


def build(settings):
    torch.manual_seed(0)
    model = build_untrained(Config(settings)).eval()
    with torch.no_grad():  # away from the middle, where all predictions would be alike
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * parameter.abs().mean())
    return model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (classifier(type="LinearClsHead"), Task("classification", "scores", {"activation": "softmax"})),
        (classifier(type="MultiLabelLinearClsHead"), Task("classification", "scores", {"activation": "sigmoid"})),
        (segmentor(num_classes=7), Task("segmentation", "classes", {"channels": 7})),
        (
            segmentor(num_classes=2, out_channels=1, threshold=0.4),
            Task("segmentation", "classes", {"channels": 1, "threshold": 0.4}),
        ),
    ],
    ids=["softmax", "sigmoid", "classes", "binary"],
)
def test_predictions_are_those_of_the_framework(settings, expected):
    model = build(settings)
    task = task_of(model)
    assert task == expected
    network = PredictionNetwork(model, task).eval()
    images = network.make_images(2, 64, 128)
    with torch.no_grad():
        (actual,) = network(images)
        inputs = model.data_preprocessor(dict(inputs=list(images.permute(0, 3, 1, 2)), data_samples=None), False)
        samples = model.predict(inputs["inputs"])
    if task.name == "classification":
        torch.testing.assert_close(actual, torch.stack([sample.pred_score for sample in samples]))
    else:
        assert torch.equal(actual, torch.cat([sample.pred_sem_seg.data for sample in samples]).to(actual.dtype))
        assert actual.shape == (2, 64, 128) and len(actual.unique()) > 1
    network.check((64, 64))
    if task.name == "segmentation":
        PredictionNetwork(model, task_of(model, logits=True)).eval().check((64, 128))


def test_parts_are_maps_and_unknown_ones_named():
    model = build(segmentor(num_classes=7))
    task = task_of(model, "backbone")
    assert task == Task("features", "maps", {"part": "backbone"})
    PredictionNetwork(model, task).eval().check((64, 64))
    with pytest.raises(ValueError, match="part='neck': expected None, or a part of the model: backbone"):
        PredictionNetwork(model, task_of(model, "neck"))
    with pytest.raises(ExportError, match="RepMLPNet is not a classifier or segmentor, and has no backbone"):
        task_of(RepMLPNet(TINY, img_size=64))


def test_another_way_to_predict_is_noticed():
    model = build(segmentor(num_classes=7))
    network = PredictionNetwork(model, task_of(model)).eval()
    network.classify = lambda logits: logits.argmin(1).to(torch.uint8)
    with pytest.raises(ExportError, match="classes of the graph would differ from the framework's"):
        network.check((64, 64))
    model = build(classifier(type="LinearClsHead"))
    network = PredictionNetwork(model, Task("classification", "scores", {"activation": "sigmoid"})).eval()
    with pytest.raises(ExportError, match="scores of the graph would differ from the framework's by"):
        network.check((64, 64))


@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_classes_is_that_of_their_logits(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    best, classes = logits.argmax(1), torch.randint(0, 4, (2, 5, 6), generator=generator)
    pixels = [(n, y, x) for n in range(2) for y in range(5) for x in range(6)]
    below = [(logits[n, best[n, y, x], y, x] - logits[n, classes[n, y, x], y, x]).item() for n, y, x in pixels]
    assert class_error(logits, classes) == pytest.approx(max(below) / logits.abs().max().item(), rel=1e-6)
    assert class_error(logits, best) == 0
    logits[:, 2] = logits[:, 1] = logits.amax(1) + 1  # a tie
    assert class_error(logits, torch.full_like(best, 1)) == class_error(logits, torch.full_like(best, 2)) == 0
    assert class_error(logits, best[:1]) == class_error(logits, torch.full_like(best, 4)) == float("inf")


def test_the_error_of_a_single_logit_is_its_distance_from_the_threshold():
    logits = torch.tensor([-2.0, 0.5, 0.7, 3.0]).view(1, 1, 2, 2)
    boundary = torch.logit(torch.tensor(0.65)).item()  # 0.62
    for classes, wrong in (([0, 0, 1, 1], 0), ([0, 1, 1, 1], boundary - 0.5), ([0, 0, 0, 1], 0.7 - boundary)):
        error = class_error(logits, torch.tensor(classes).view(1, 2, 2), 0.65)
        assert error == pytest.approx(wrong / (2 + boundary), abs=1e-6)  # -2 is the farthest from it


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_images_of_the_dataset_tell_channels_and_type(dtype):
    settings = classifier(type="LinearClsHead")
    largest = torch.iinfo(dtype).max  # one mean for all channels
    settings["data_preprocessor"].update(mean=[0.5 * largest], std=[0.5 * largest])
    model = build(settings)
    task = task_of(model, channels=3)
    assert task.name == "classification"
    network = PredictionNetwork(model, task, torch.zeros(1, 2, 2, 3, dtype=dtype)).eval()
    network.check((64, 64))
    images = network.make_images(2, 64, 64)
    assert images.dtype is dtype and images.shape[3] == 3 and images.to(torch.int32).max() > 0.9 * largest
