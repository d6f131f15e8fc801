# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmpretrain.datasets import CustomDataset

from mmrepmlp.engine.annotations import AnnotationError
from tests.engine.annotated import classifier, coco_dataset, detector, run


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
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((4, 4, 3), np.uint8))
    dataset = CustomDataset(data_root=str(tmp_path), classes=classes)
    run(RepeatDataset(dataset, 2), classifier(2))
    message = (
        f"{tmp_path} numbers the classes in the order ['a', 'b'], but the config names them in the order {classes}."
    )
    assert [record.getMessage().startswith(message) for record in caplog.records] == [True] * wrong
    (tmp_path / "list.txt").write_text("a/0.png 0\nb/0.png 1\n")  # the numbers are in the file
    run(CustomDataset(data_root=str(tmp_path), ann_file="list.txt", classes=["b", "a"]), classifier(2))
    assert len(caplog.records) == wrong


@pytest.mark.parametrize(
    "classes, mistakes",
    [
        (("a", "b"), []),
        (("b",), []),  # boxes of the other category are left out
        ("ab", []),  # a comma was forgotten; what mmdetection makes of it is its own
        (("b", "a"), ["numbers the classes in the order ['a', 'b'], but"]),
        (("a", "B"), ["has no category ['B']: its categories are ['a', 'b']"]),
        (("A", "b"), ["has no category ['A']", "numbers the classes in the order ['b'], but"]),
    ],
)
def test_categories_are_numbered_as_in_the_file(detection, tmp_path, caplog, classes, mistakes):
    run(coco_dataset(tmp_path, classes), detector(2))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(mistakes)
    assert all(message.startswith(f"{tmp_path}/coco.json {start}") for message, start in zip(messages, mistakes))


def test_names_of_no_category(detection, tmp_path, caplog):
    unmatched = coco_dataset(tmp_path, ("A", "B"))
    with pytest.raises(AnnotationError, match=r"coco\.json has the categories \['a', 'b'\], .*\['A', 'B'\] names none"):
        run(unmatched, detector(2))
    run(ConcatDataset([detection, unmatched], ignore_keys=["classes"]), detector(2))  # images with none of the objects
    assert [record.getMessage().endswith("no box is used.") for record in caplog.records] == [True]
