# SPDX-License-Identifier: Apache-2.0
"""Runs that their data end, and what is said about it."""

import json
import re
import traceback
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import BaseLoop, Runner
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from mmrepmlp.apis import evaluate, train
from mmrepmlp.verbs.deploy.images import dataset_images
from mmrepmlp.verbs.explain import ExplainedError, explained
from mmrepmlp.verbs.model import build_untrained

LOAD = [dict(type="mmcv.LoadImageFromFile")]
SEGMENTED = dict(type="mmseg.BaseSegDataset", data_prefix=dict(img_path="img", seg_map_path="ann"), pipeline=LOAD)


class Loop(BaseLoop):
    """A loop that only loads."""

    def __init__(self, loader: dict) -> None:
        self.dataloader = Runner.build_dataloader(loader)

    def run(self) -> None:
        for _ in self.dataloader:
            pass


def read(dataset: dict, workers: int = 0, **settings) -> str:
    """Load samples as a runner does, and return what is said about the error."""
    loader = dict(
        dataset=dataset, batch_size=1, num_workers=workers, sampler=dict(type="DefaultSampler", shuffle=False)
    )
    cfg = Config(dict(train_dataloader=loader | settings))
    with pytest.raises(ExplainedError) as caught, explained(cfg), DefaultScope.overwrite_default_scope("mmseg"):
        Loop(cfg.train_dataloader).run()
    # Workers end at once where nothing refers to them; left to the garbage collector, torch waits for them in vain.
    trace = caught.value.__cause__.__traceback__
    traceback.clear_frames(trace)
    _ = [frame.f_locals for frame, _ in traceback.walk_tb(trace)]  # looking at the locals renews their copies
    return str(caught.value)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "img").mkdir()
    cv2.imwrite(str(tmp_path / "img/1.png"), np.zeros((8, 8, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_folder_is_named_with_its_setting(root, workers):
    leaf = dict(SEGMENTED, data_root=str(root), img_suffix=".png", pipeline=[*LOAD, dict(type="LoadAnnotations")])
    wrapped = dict(type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[leaf]))
    error = read(wrapped, workers)
    setting = r"train_dataloader\.dataset\.dataset\.datasets\.0\.data_prefix\.seg_map_path\."
    assert re.fullmatch(rf"FileNotFoundError: .*ann/1\.png'\. \S+/ann does not exist; it is set by {setting} .*", error)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (dict(SEGMENTED, data_root="{root}/none"), r"none does not exist; it is set by .*dataset\.data_root"),
        (dict(SEGMENTED, data_root="{root}", ann_file="x.txt"), r"x\.txt does not exist; .*dataset\.ann_file"),
        (dict(type="mmpretrain.CustomDataset", data_root="{root}/none"), r"none does not exist; .*\.data_root"),
        (dict(type="mmpretrain.CustomDataset", data_prefix="none"), r"none does not exist; .*\.data_prefix"),
        (dict(type="mmpretrain.ImageNet", data_root="{root}/none"), r"none does not exist; .*\.data_root"),
        (dict(type="mmdet.CocoDataset", data_root="{root}", ann_file="a.json"), r"a\.json does not exist.*\.ann_file"),
        (
            dict(type="mmpretrain.CustomDataset", data_root="{root}", data_prefix="img", extensions=(".bmp",)),
            r"Found 0 files .*Supported extensions are: \.bmp\. The path begins with \S+img, .*\.data_prefix",
        ),
        (
            dict(type="mmpretrain.CustomDataset", data_root="{root}", ann_file="list.txt", pipeline=LOAD),
            r"2\.png'\. The path begins with \S+, which is set by train_dataloader\.dataset\.data_root",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_by_its_setting(root, dataset, message):
    (root / "list.txt").write_text("2.png 0\n")
    dataset = {
        key: value.replace("{root}", str(root)) if isinstance(value, str) else value for key, value in dataset.items()
    }
    assert re.search(message, read(dataset))


@pytest.mark.parametrize("kind, suffix", [("BaseSegDataset", ".jpg"), ("CityscapesDataset", "_leftImg8bit.png")])
def test_images_with_another_extension(root, kind, suffix):
    dataset = dict(SEGMENTED, type=f"mmseg.{kind}", data_root=str(root))
    assert re.search(
        rf"ends in '{suffix}'; found: \.png\. Set train_dataloader\.dataset\.img_suffix, and", read(dataset)
    )


def test_a_coco_dataset_none_of_whose_categories_is_named(root):
    boxes = [dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0)]
    images = [dict(id=1, file_name="1.png", height=8, width=8)]
    (root / "a.json").write_text(json.dumps(dict(images=images, annotations=boxes, categories=[dict(id=1, name="x")])))
    dataset = dict(type="mmdet.CocoDataset", data_root=str(root), ann_file="a.json", data_prefix=dict(img="img/"))
    dataset |= dict(metainfo=dict(classes=("y",)), filter_cfg=dict(filter_empty_gt=True))
    assert re.search(r"None of the categories in \S+a\.json is in metainfo\.classes=\('y',\)", read(dataset))
    dataset |= dict(metainfo=dict(classes=("x",)), filter_cfg=dict(filter_empty_gt=True, min_size=99))
    assert re.search(r"CocoDataset is empty\. Check ann_file='\S+a\.json', .* and filter_cfg", read(dataset))


PNG = cv2.imencode(".png", np.arange(64, dtype=np.uint8).reshape(8, 8))[1].tobytes()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "file, content, kind",
    [
        ("img/2.png", b"", "empty"),
        ("ann/2.png", b"", "empty"),
        ("ann/2.png", b"no picture", "damaged"),
        ("ann/2.png", PNG[:50], "damaged"),  # which Pillow says when it is decoded
    ],
)
def test_a_file_that_cannot_be_read_is_named(root, workers, file, content, kind):
    (root / "ann").mkdir()
    for i in range(1, 4):
        (root / f"img/{i}.png").write_bytes(PNG)
        (root / f"ann/{i}.png").write_bytes(PNG)
    (root / file).write_bytes(content)
    dataset = dict(SEGMENTED, data_root=str(root), img_suffix=".png", pipeline=[*LOAD, dict(type="LoadAnnotations")])
    assert f" {root}/{file} is {kind}. Replace the file" in read(
        dict(type="RepeatDataset", times=2, dataset=dataset), workers
    )


def test_images_of_formats_that_only_opencv_reads_are_not_blamed(root):
    cv2.imwrite(str(root / "img/0.pfm"), np.ones((4, 4), np.float32))
    (root / "img/1.pfm").touch()
    dataset = dict(SEGMENTED, data_root=str(root), img_suffix=".pfm")
    assert f"{root}/img/1.pfm is empty" in read(dataset)


def test_an_empty_image_among_those_that_calibrate(root):
    (root / "img/2.png").touch()
    dataset = dict(SEGMENTED, data_root=str(root), img_suffix=".png", pipeline=[*LOAD, dict(type="PackSegInputs")])
    loader = dict(dataset=dataset)
    cfg = Config(dict(default_scope="mmseg", train_dataloader=loader, test_dataloader=loader))
    with pytest.raises(ExplainedError, match=r"img/2\.png is empty"):
        dataset_images(cfg, "train", 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_several_sizes_in_a_batch(root, workers):
    cv2.imwrite(str(root / "img/2.png"), np.zeros((8, 9, 3), np.uint8))
    pack = [*LOAD, dict(type="mmseg.PackSegInputs")]
    dataset = dict(SEGMENTED, data_root=str(root), img_suffix=".png", pipeline=pack)
    said = read(dataset, workers, batch_size=2, collate_fn=dict(type="default_collate"))
    assert re.search(r"different sizes\. Set train_dataloader\.batch_size=1, or resize .* in train_dataloader\.d", said)
    images = dict(inputs=[torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], data_samples=[SegDataSample(), SegDataSample()])
    with pytest.raises(ExplainedError, match=r"Set train_dataloader\.batch_size=1"), explained(Config()):
        SegDataPreProcessor()(images)


@pytest.mark.parametrize("folder", [".cache", "c"])
def test_folders_beside_the_classes_are_named(root, folder):
    for name in ("a", "b", folder):
        (root / "cls" / name).mkdir(parents=True)
        (root / "cls" / name / "1.png").write_bytes(PNG)
    dataset = dict(type="mmpretrain.CustomDataset", data_root=f"{root}/cls", metainfo=dict(classes=["a", "b"]))
    message = rf"Folders without a class: \['{folder}'\]; classes without a folder: \[\]\. "
    assert re.search(rf"number of subfolders \(3\) .* {message}", read(dataset))


def test_runs_end_with_an_explanation(config, tmp_path):
    message = r"nowhere does not exist; it is set by {}_dataloader\.dataset\.data_root"
    roots = {f"{split}_dataloader.dataset.data_root": str(tmp_path / "nowhere") for split in ("val", "test")}
    short = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1, "train_dataloader.dataset.indices": 2}
    with pytest.raises(ExplainedError, match=message.format("val")):
        train(config, str(tmp_path / "run"), cfg_options=short | roots)
    torch.save(build_untrained(Config.fromfile(config)).state_dict(), tmp_path / "x.pth")
    with pytest.raises(ExplainedError, match=message.format("test")):
        evaluate(config, tmp_path / "x.pth", str(tmp_path / "run"), cfg_options=roots)
