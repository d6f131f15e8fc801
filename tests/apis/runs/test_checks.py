# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import ConfigDict
from mmpretrain.datasets import CIFAR10, CustomDataset

from mmrepmlp.apis import evaluate, train
from mmrepmlp.apis.runs.checks import check_files
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
    if dataset["data_root"] == "{root}":
        dataset = {**dataset, "data_root": str(tmp_path)}
    check_files(ConfigDict(dataset), "train")


@pytest.mark.parametrize("dataset", [dict(type=CustomDataset), dict(type="mmpretrain.CIFAR10", download=False)])
def test_a_data_set_that_needs_files_does_not(dataset):
    with pytest.raises(FileNotFoundError, match=r"none does not exist; it is set by train\.data_root"):
        check_files(ConfigDict(data_root="none", **dataset), "train")


def test_mistakes_end_before_anything_is_built(tmp_path):
    missing = {"train_dataloader.dataset.data_root": str(tmp_path / "nowhere")}
    with pytest.raises(
        FileNotFoundError, match=r"nowhere does not exist; it is set by train_dataloader\.dataset\.data_root"
    ):
        train(CONFIG, str(tmp_path / "run"), cfg_options=missing)
    with pytest.raises(ValueError, match=r"model\.head\.in_channels=100 .*=192"):
        evaluate(CONFIG, "none.pth", str(tmp_path / "run"), cfg_options={"model.head.in_channels": 100})
    assert not (tmp_path / "run").exists()
