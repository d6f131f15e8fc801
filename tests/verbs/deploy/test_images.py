# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.deploy.folder import DeploymentError
from mmrepmlp.verbs.deploy.images import dataset_images, fit


def test_training_images_are_seen_as_a_test_does(config, digits, tmp_path):
    cfg = load_config(config, None, str(tmp_path))
    images = dataset_images(cfg, "train", 20)
    assert len(images) == 20 and all(image.shape == (1, 64, 64, 3) and image.dtype == torch.uint8 for image in images)
    again = dataset_images(cfg, "train", 20)
    assert all(torch.equal(a, b) for a, b in zip(images, again))
    assert len(dataset_images(cfg, "test", 10**6)) == 360
    known = set()
    for path in (digits / "train").rglob("*.png"):
        resized = cv2.resize(cv2.imread(str(path)), (64, 64), interpolation=cv2.INTER_CUBIC)
        known.add(resized.tobytes())  # no augmentation, no normalization
    assert all(image.numpy().tobytes() in known for image in images)


def test_wrapped_data_sets(config, tmp_path):
    cfg = load_config(config, None, str(tmp_path))
    plain = dataset_images(cfg, "train", 3)
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=cfg.train_dataloader.dataset)
    assert [image.shape for image in dataset_images(cfg, "train", 3)] == [image.shape for image in plain]
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match="has no train_dataloader"):
        dataset_images(cfg, "train", 3)


def test_images_keep_the_type_of_their_files(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 65536, (2, 3)).astype(np.uint16)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a/0.png"), pixels)
    load = dict(type="LoadImageFromFile", color_type="unchanged", to_float32=True)
    dataset = dict(type="CustomDataset", data_root=str(tmp_path), pipeline=[load, dict(type="PackInputs")])
    cfg = Config(dict(default_scope="mmpretrain", test_dataloader=dict(dataset=dataset)))
    (image,) = dataset_images(cfg, "test", 3)
    assert image.dtype is torch.uint16 and (image[0, ..., 0].numpy() == pixels).all()
    normalize = dict(type="Normalize", mean=[0.0], std=[1.0], to_rgb=False)
    cfg.test_dataloader.dataset.pipeline.insert(1, normalize)
    with pytest.raises(DeploymentError, match=r"Images of the test set are float32.* takes uint8 or uint16.*--raw"):
        dataset_images(cfg, "test", 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_images_fit_the_graph_by_windows_and_are_enlarged_where_they_are_smaller(dtype):
    image = torch.arange(6 * 8 * 3).view(1, 6, 8, 3).to(dtype)
    windows = [fit(image, (4, None)) for _ in range(50)]
    places = {next(i for i in range(3) if torch.equal(image[:, i : i + 4], window)) for window in windows}
    assert places == {0, 1, 2}
    assert torch.equal(fit(image, (None, None)), image)
    assert fit(image, (12, 8)).shape == (1, 12, 8, 3) and fit(image, (12, 20)).dtype is dtype
    even = torch.full((1, 5, 7, 1), 200, dtype=dtype)
    assert (fit(even, (64, 64)).to(torch.int32) == 200).all()
