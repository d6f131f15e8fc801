# SPDX-License-Identifier: Apache-2.0
"""What the files of a dataset tell: each dataset is a real one of a framework, and read by its pipeline."""

import re
from pathlib import Path

import mmseg.datasets.transforms  # noqa: F401
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmseg.datasets import BaseSegDataset
from PIL import Image

from tests.engine.annotated import (
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
    write_image,
)

ROTATED = 6  # EXIF orientation of a camera that was held upright


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def masked(root: Path, color_type: str = "color", load: str = "LoadAnnotations", **settings) -> BaseSegDataset:
    pipeline = [dict(type="LoadImageFromFile", color_type=color_type), dict(type=load), dict(type="PackSegInputs")]
    prefix = dict(img_path="img", seg_map_path="ann")
    with DefaultScope.overwrite_default_scope("mmseg"):
        meta = dict(classes=("a", "b"), palette=[[0, 0, 0], [9, 9, 9]])
        return BaseSegDataset(data_root=str(root), data_prefix=prefix, metainfo=meta, pipeline=pipeline, **settings)


def warnings_of(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == "hook"]
    caplog.clear()
    return found


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((8, 8, 3), np.uint8) + 230, r"1\.png has 3 channels; a mask needs one"),
        (np.zeros((8, 8, 4), np.uint8), r"1\.png has 4 channels; a mask needs one"),
        (np.zeros((8, 8, 2), np.uint8), r"1\.png has 2 channels; a mask needs one"),  # grey and alpha
        (np.uint16([[0, 1], [256, 1]]).repeat(4, 0).repeat(4, 1), r"1\.png has labels up to 256, .* 8 bits"),
        (np.uint16([[0, 1], [255, 1]]).repeat(4, 0).repeat(4, 1), None),
        (np.uint8([[0, 1], [255, 1]]).repeat(4, 0).repeat(4, 1), None),
    ],
)
def test_masks_that_become_others_where_they_are_read(tmp_path, values, message):
    write_image(tmp_path / "img/1.jpg")
    write_mask(tmp_path / "ann/1.png", values)
    dataset = masked(tmp_path)
    model, samples = segmentor(2), [dataset[0]["data_samples"]]
    run = run_of(model, dataset)
    for see in (started(model, dataset).before_train_iter, begun_test(model, dataset, {}).before_test_iter):
        assert re.search(message or "^$", refusal(see, run, 0, dict(data_samples=samples)))


def test_a_mask_with_a_palette_is_one_of_numbers(tmp_path):
    write_image(tmp_path / "img/1.jpg")
    mask = Image.new("P", (8, 8), 1)
    mask.putpalette([0, 0, 0, 200, 10, 10])
    (tmp_path / "ann").mkdir()
    mask.save(tmp_path / "ann/1.png")
    dataset = masked(tmp_path)
    check(segmentor(2), dataset[0]["data_samples"], dataset=dataset)


@pytest.mark.parametrize("color_type, said", [("color", 1), ("grayscale", 1), ("color_ignore_orientation", 0)])
@pytest.mark.parametrize("orientation", [1, 3, ROTATED])
def test_rotated_images_beside_masks_that_are_not(tmp_path, caplog, color_type, said, orientation):
    for name in "12":
        write_image(tmp_path / f"img/{name}.jpg", orientation=orientation)  # a square, whose mask fits anyhow
        write_mask(tmp_path / f"ann/{name}.png", np.zeros((8, 8), np.uint8))
    dataset = masked(tmp_path, color_type)
    check(segmentor(2), *(dataset[i]["data_samples"] for i in range(2)), dataset=dataset)
    messages = warnings_of(caplog)
    assert len(messages) == said * (orientation != 1)  # one line for both
    assert all("1.jpg is rotated" in m and "color_type='color_ignore_orientation'" in m for m in messages)


@pytest.mark.parametrize("size, said", [((12, 8), 1), ((8, 12), 0)])
def test_rotated_images_beside_boxes(tmp_path, caplog, size, said):
    """Boxes on the rotated image are right, and the sizes in the file tell."""
    write_image(tmp_path / "img/1.jpg", 12, 8, orientation=ROTATED)
    load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True), dict(type="PackDetInputs")]
    dataset = boxed(tmp_path, "a", size=size, pipeline=load)
    sample = dataset[0]["data_samples"]
    assert sample.ori_shape == (12, 8)  # so it was rotated
    check(detector(1), sample, dataset=dataset)
    assert ["1.jpg is rotated" in message for message in warnings_of(caplog)] == [True] * said
    load[0]["color_type"] = "color_ignore_orientation"
    dataset = boxed(tmp_path, "a", size=size, pipeline=load)
    check(detector(1), dataset[0]["data_samples"], dataset=dataset)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "A-empty/"])
def test_folders_that_are_no_class(tmp_path, caplog, name):
    clean = classified(tmp_path / "clean", "a", "b")
    odd = classified(tmp_path / "odd", name, "a", "b")
    assert odd.metainfo["classes"] == (name.rstrip("/"), "a", "b")
    message = rf"Class 'a' has number 1 in \S+odd, but 0 in training\. {name.rstrip('/')} counts as a class,"
    assert re.match(message, refusal(started, classifier(2), clean, odd))
    assert re.match(message, refusal(begun_test, classifier(2), odd, dict(meta=dict(dataset_meta=clean.metainfo))))
    message = r"odd has 3 folders, but model\.head has classes 0 to 1\. .* Remove it"
    assert re.search(message, refusal(started, classifier(2), odd, odd))
    assert not warnings_of(caplog)
    started(classifier(3), odd)
    assert ["odd: " in m and f"{name.rstrip('/')} counts as a class" in m for m in warnings_of(caplog)] == [True]
    assert re.match(r"Class 'a' has number 0 in \S+clean, but 1 in", refusal(started, classifier(3), odd, clean))
    assert len(warnings_of(caplog)) == 1  # of the training set
    started(classifier(2), clean, val=clean)
    assert not warnings_of(caplog)


def test_a_class_of_the_training_without_an_image_to_validate_is_one(tmp_path, caplog):
    clean = classified(tmp_path / "clean", "a", "b")
    started(classifier(2), clean, val=classified(tmp_path / "val", "a/", "b"))
    begun_test(classifier(2), classified(tmp_path / "test", "a/", "b"), dict(meta=dict(classes=["a", "b"])))
    assert not warnings_of(caplog)


def test_fewer_folders_than_in_training(tmp_path):
    clean, fewer = classified(tmp_path / "clean", "a", "b", "c"), classified(tmp_path / "fewer", "a", "c")
    said = refusal(begun_test, classifier(3), fewer, dict(meta=dict(CLASSES=["a", "b", "c"])))
    assert re.match(r"Class 'c' has number 1 in \S+fewer, but 2 in training\. .* not in both: b\.", said)
    begun_test(classifier(3), clean, dict(meta=dict(CLASSES=["A", "B", "C"])))  # other names
    begun_test(classifier(3), fewer, dict(state_dict={}))  # of nobody knows what


def test_other_datasets_in_another_order_are_a_warning(tmp_path, caplog):
    write_image(tmp_path / "img/1.jpg")
    write_mask(tmp_path / "ann/1.png", np.zeros((8, 8), np.uint8))
    begun_test(segmentor(2), masked(tmp_path), dict(meta=dict(dataset_meta=dict(classes=("b", "a")))))
    assert ["Class 'a' has number 0 in" in message for message in warnings_of(caplog)] == [True]


def test_images_with_an_extension_that_is_not_read(tmp_path, caplog):
    for name in ("1.jpg", "2.png", "3.JPG", "sub/4.webp", ".5.png", "notes.txt"):
        write_image(tmp_path / "img" / name) if not name.endswith("txt") else (tmp_path / "img" / name).touch()
        write_mask(tmp_path / "ann" / f"{Path(name).stem}.png", np.zeros((8, 8), np.uint8))
    started(segmentor(2), masked(tmp_path))
    expected = f"{tmp_path}/img has images that are not read: 1 .JPG, 1 .png, 1 .webp. Convert them, or set img_suffix"
    assert [message.startswith(expected) for message in warnings_of(caplog)] == [True]
    started(classifier(2), classified(tmp_path / "cls", "a", "b"))
    assert not warnings_of(caplog)
    write_image(tmp_path / "cls/a/1.webp")
    write_image(tmp_path / "cls/a/1.JPEG")
    started(classifier(2), classified(tmp_path / "cls"))
    (message,) = warnings_of(caplog)
    assert message.startswith(f"{tmp_path}/cls has images that are not read: 1 .webp. Convert them, or set extensions")
    started(classifier(2), classified(tmp_path / "cls", extensions=(".png", ".webp", ".jpeg")))
    assert not warnings_of(caplog)


def test_masks_beside_images_are_no_images(tmp_path, caplog):
    write_image(tmp_path / "img/1.jpg")
    write_mask(tmp_path / "img/1.png", np.zeros((8, 8), np.uint8))
    write_image(tmp_path / "img/1_right.jpg")
    dataset = masked(tmp_path)
    dataset.data_prefix["seg_map_path"] = dataset.data_prefix["img_path"]
    started(segmentor(2), dataset)
    dataset.img_suffix = "_left.jpg"  # of one of two cameras
    started(segmentor(2), dataset)
    assert not warnings_of(caplog)
