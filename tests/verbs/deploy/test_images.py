# SPDX-License-Identifier: Apache-2.0
import cv2
import pytest
import torch

from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.deploy.images import dataset_images
from tests.fixtures import CONFIG


def test_training_images_are_seen_as_a_test_does(options, digits, tmp_path):
    cfg = load_config(CONFIG, options, str(tmp_path))
    images = dataset_images(cfg, "train", 40)
    assert len(images) == 40 and all(image.shape == (1, 64, 64, 3) and image.dtype == torch.uint8 for image in images)
    again = dataset_images(cfg, "train", 40)
    assert all(torch.equal(a, b) for a, b in zip(images, again))
    assert len(dataset_images(cfg, "test", 10**6)) == 360
    known = set()
    for path in (digits / "train").rglob("*.png"):
        resized = cv2.resize(cv2.imread(str(path)), (64, 64), interpolation=cv2.INTER_CUBIC)
        known.add(resized.tobytes())  # no augmentation, no normalization
    assert all(image.numpy().tobytes() in known for image in images)


def test_wrapped_data_sets_and_images_of_floats(options, tmp_path):
    cfg = load_config(CONFIG, options, str(tmp_path))
    plain = dataset_images(cfg, "train", 3)
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=cfg.train_dataloader.dataset)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step["type"] == "LoadImageFromFile":
            step["to_float32"] = True
    wrapped = dataset_images(cfg, "train", 3)
    assert all(image.dtype == torch.uint8 and image.shape == plain[0].shape for image in wrapped)
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match="has no train_dataloader"):
        dataset_images(cfg, "train", 3)
