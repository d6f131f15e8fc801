# SPDX-License-Identifier: Apache-2.0
import copy
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmpretrain.datasets import CIFAR10, CustomDataset

from mmrepmlp.apis import evaluate, train
from mmrepmlp.verbs.checks import check_config, check_files
from tests.fixtures import CONFIG


def test_a_missing_folder_is_named_with_its_setting(tmp_path):
    (tmp_path / "img").mkdir()
    leaf = dict(
        type="mmseg.BaseSegDataset",
        data_root=str(tmp_path),
        data_prefix=dict(img_path="img", seg_map_path="ann"),
        pipeline=[dict(type="LoadAnnotations")],
    )
    wrapped = ConfigDict(type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[leaf]))
    with pytest.raises(
        FileNotFoundError, match=r"ann does not exist; it is set by train\.dataset\.datasets\.data_prefix\.seg_map_path"
    ):
        check_files(wrapped, "train")
    (tmp_path / "ann").mkdir()
    check_files(wrapped, "train")


class Generated(CustomDataset):
    """A data set of somebody else, which needs no files."""


@pytest.mark.parametrize(
    "dataset",
    [
        dict(type="mmpretrain.ImageNet", data_root="s3://bucket/imagenet"),
        dict(type="mmpretrain.ImageNet", data_root="data/imagenet", backend_args=dict(backend="petrel")),
        dict(type="mmpretrain.CIFAR10", data_root="data/cifar10"),
        dict(type=CIFAR10, data_root="data/cifar10"),
        dict(type=Generated, data_root="none"),
        dict(type="NobodyKnows", data_root="none"),
        dict(type="mmseg.BaseSegDataset", data_root="{root}", data_prefix=dict(img_path="", seg_map_path="hidden")),
        dict(type="mmdet.CocoDataset", data_root="{root}", data_prefix=dict(img="", other="of nobody"), ann_file=""),
        dict(type="mmseg.BaseSegDataset", data_root="{root}", data_prefix=dict(img_path=None), ann_file=None),
    ],
)
def test_data_sets_that_may_do_without_files_pass(tmp_path, dataset):
    check_files(put_root(dataset, str(tmp_path)), "train")


@pytest.mark.parametrize("dataset", [dict(type=CustomDataset), dict(type="mmpretrain.CIFAR10", download=False)])
def test_a_data_set_that_needs_files_does_not(dataset):
    with pytest.raises(FileNotFoundError, match=r"none does not exist; it is set by train\.data_root"):
        check_files(ConfigDict(data_root="none", **dataset), "train")


class LoadFromArchive(BaseTransform):
    """A transform of somebody else, whose images are in no folder."""

    def transform(self, results):
        return {**results, "img": np.zeros((8, 8, 3), np.uint8)}


class FailToLoad(BaseTransform):
    """A transform of somebody else, whose own file is missing."""

    def transform(self, results):
        Path("/of/somebody/else").read_text()


def put_root(value, root):
    if isinstance(value, dict):
        return ConfigDict({key: put_root(part, root) for key, part in value.items()})
    return value.replace("{root}", root) if isinstance(value, str) else value


LOAD = [dict(type="mmcv.LoadImageFromFile")]
CLASSIFIED = dict(type="mmpretrain.CustomDataset", pipeline=LOAD)
SEGMENTED = dict(type="mmseg.BaseSegDataset", img_suffix=".png", pipeline=LOAD)


@pytest.mark.parametrize(
    "dataset",
    [
        dict(CLASSIFIED, data_root="missing", data_prefix="{root}/img"),
        dict(CLASSIFIED, data_root="{root}", data_prefix="missing", ann_file="absolute.txt"),
        dict(CLASSIFIED, data_prefix="~/img"),
        dict(CLASSIFIED, data_prefix="~/img", ann_file="~/relative.txt"),
        dict(
            CLASSIFIED, data_root="{root}", data_prefix="missing", ann_file="relative.txt", pipeline=[LoadFromArchive()]
        ),
        dict(SEGMENTED, data_root="missing", data_prefix=dict(img_path="{root}/img", seg_map_path="{root}/ann")),
        dict(SEGMENTED, data_root="{root}", data_prefix=dict(img_path="missing"), ann_file="names.txt"),
    ],
)
def test_data_sets_that_find_their_files_elsewhere_pass(tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("HOME", str(tmp_path))
    mmcv.imwrite(np.zeros((8, 8, 3), np.uint8), str(tmp_path / "img" / "a" / "1.png"))
    for name, line in {
        "relative.txt": "a/1.png 0",
        "absolute.txt": f"{tmp_path}/img/a/1.png 0",
        "names.txt": f"{tmp_path}/img/a/1",
    }.items():
        (tmp_path / name).write_text(line + "\n")
    dataset = put_root(ConfigDict(dataset), str(tmp_path))
    assert DATASETS.build(copy.deepcopy(dataset))[0]["img"].shape == (8, 8, 3)  # as the framework does
    check_files(dataset, "train")


@pytest.mark.parametrize("kind, ending", [("BaseSegDataset", ".jpg"), ("CityscapesDataset", "_leftImg8bit.png")])
def test_images_with_another_ending(tmp_path, kind, ending):
    def check(**settings):
        dataset = dict(type=f"mmseg.{kind}", data_root=str(tmp_path), data_prefix=dict(img_path="img"), pipeline=LOAD)
        check_files(ConfigDict(dataset, **settings), "train")

    image = np.zeros((8, 8, 3), np.uint8)
    mmcv.imwrite(image, str(tmp_path / "img/a/1.png"))
    with pytest.raises(
        FileNotFoundError, match=rf"img has no file that ends in '{ending}', but \.png\. Set train\.img_suf"
    ):
        check()
    check(img_suffix=".png")
    (tmp_path / "names.txt").write_text("a/1\n")
    check(ann_file="names.txt")  # which may name what is in no folder
    mmcv.imwrite(image, str(tmp_path / f"img/a/1{ending}"))
    check()


@pytest.mark.parametrize("loader", [None, [dict(dataset=dict(data_root="none"))], dict(dataset=object()), object()])
def test_loaders_that_are_no_configs_of_data_sets_pass(loader):
    check_config(Config(dict(model=dict(type="NobodyKnows"), test_dataloader=loader)), "test")


def test_what_else_is_wrong_with_a_data_set_is_its_own_to_say(tmp_path):
    (tmp_path / "names.txt").write_text("1\n")
    dataset = dict(SEGMENTED, data_prefix=dict(img_path="missing"), ann_file=str(tmp_path / "names.txt"))
    with pytest.raises(FileNotFoundError, match=r"missing does not exist; .* change train\.data_prefix\.img_path"):
        check_files(ConfigDict(dataset), "train")
    check_files(ConfigDict(dataset, pipeline=[dict(type="NobodyKnows")]), "train")
    check_files(ConfigDict(dataset, pipeline=[FailToLoad()]), "train")


def test_mistakes_end_before_anything_is_built(tmp_path):
    missing = {"train_dataloader.dataset.data_root": str(tmp_path / "nowhere")}
    with pytest.raises(
        FileNotFoundError, match=r"nowhere does not exist; it is set by train_dataloader\.dataset\.data_root"
    ):
        train(CONFIG, str(tmp_path / "run"), cfg_options=missing)
    with pytest.raises(ValueError, match=r"model\.head\.in_channels=100 .*=192"):
        evaluate(CONFIG, "none.pth", str(tmp_path / "run"), cfg_options={"model.head.in_channels": 100})
    assert not (tmp_path / "run").exists()
