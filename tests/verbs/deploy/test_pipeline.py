# SPDX-License-Identifier: Apache-2.0
"""What the stand-alone program does to an image, against the frameworks' own transforms."""

import json
import runpy

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmseg.structures import SegDataSample
from torch import nn

from mmrepmlp.export.normalization import measure_normalization, preprocessing_of
from mmrepmlp.verbs.deploy.folder import PROGRAM, write_program
from mmrepmlp.verbs.deploy.pipeline import describe_padding, describe_pipeline, output_size

PROGRAM_NAMES = runpy.run_path(str(PROGRAM))
sides = st.integers(5, 90)
filters = st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])
edges, booleans = st.sampled_from(["short", "long", "width", "height"]), st.booleans()


@st.composite
def transforms(draw):
    """A transform of one of the frameworks' test pipelines."""
    size = (draw(sides), draw(sides))
    by = dict(interpolation=draw(filters), backend="cv2") if draw(booleans) else dict(backend="pillow")
    return draw(
        st.sampled_from(
            [
                dict(type="Resize", scale=size, keep_ratio=draw(booleans), **by),
                dict(type="ResizeEdge", scale=size[0], edge=draw(edges), **by),
                dict(type="CenterCrop", crop_size=size),
                dict(type="Pad", size=(90 + size[0], 90 + size[1]), pad_val=draw(st.integers(0, 255))),
                dict(type="Pad", size_divisor=draw(st.integers(1, 32))),
                dict(type="Pad", pad_to_square=True, pad_val=dict(img=draw(st.integers(0, 255)))),
            ]
        )
    )  # fmt: skip


def config(steps, scope="mmpretrain"):
    pipeline = [dict(type="LoadImageFromFile"), *steps, dict(type="PackInputs")]
    return Config(
        dict(default_scope=scope, test_dataloader=dict(dataset=dict(type="CustomDataset", pipeline=pipeline)))
    )


def apply(steps, image):
    network = object.__new__(PROGRAM_NAMES["Network"])
    network.steps = json.loads(json.dumps(steps))
    return network.preprocess(image)


@given(steps=st.lists(transforms(), max_size=3), height=sides, width=sides, channels=st.sampled_from([1, 3]))
def test_images_are_prepared_as_the_framework_does(steps, height, width, channels):
    image = np.random.RandomState(height).randint(0, 256, (height, width, channels)).astype(np.uint8)
    color, described = describe_pipeline(config(steps))
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        given = image if channels == 3 else image[..., 0]
        try:
            expected = Compose(steps)(dict(img=given))["img"] if steps else given
        except (cv2.error, ValueError):  # a side of no pixels
            reject()
    actual = apply(described, image)
    assert color == "color" and actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected.reshape(actual.shape))
    size = output_size(described)
    if all(limit <= 90 for step in steps for limit in step.get("size", ())) and "CenterCrop" not in str(steps):
        assert size in (None, actual.shape[:2])


def test_known_sizes():
    resize = dict(type="Resize", scale=(48, 32), keep_ratio=False)
    assert output_size(describe_pipeline(config([resize]))[1]) == (32, 48)
    edge, crop = dict(type="ResizeEdge", scale=64), dict(type="CenterCrop", crop_size=56)
    assert output_size(describe_pipeline(config([edge, crop]))[1]) == (56, 56)
    for steps in ([], [edge], [resize, edge], [dict(type="Resize", scale=(48, 32), keep_ratio=True)]):
        assert output_size(describe_pipeline(config(steps))[1]) is None


def test_what_the_program_does_not_know_has_its_name_alone():
    steps = [dict(type="EfficientNetCenterCrop", crop_size=32), dict(type="Pad", size=(9, 9), padding_mode="edge")]
    _, described = describe_pipeline(config(steps))
    assert described == [{"type": "EfficientNetCenterCrop"}, {"type": "Pad"}]
    with pytest.raises(ValueError, match="needs the step EfficientNetCenterCrop of the test pipeline"):
        apply(described, np.zeros((40, 40, 3), np.uint8))


@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_pillow_is_required_where_the_pipeline_asks_for_it(backend, tmp_path):
    steps = describe_pipeline(config([dict(type="ResizeEdge", scale=64, backend=backend)]))[1]
    write_program(tmp_path, "onnxruntime", steps)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines[0].startswith("onnxruntime==") and any(line.startswith("numpy>=") for line in lines)
    assert any(line.startswith("pillow>=") for line in lines) is (backend == "pillow")


@pytest.mark.parametrize(
    "loader, name",
    [
        (dict(type="LoadImageFromFile", imdecode_backend="pillow"), "LoadImageFromFile"),
        (dict(type="LoadSingleRSImageFromFile"), "LoadSingleRSImageFromFile"),
        (None, "CustomDataset"),  # whose images come as arrays
    ],
)
def test_images_that_are_read_otherwise_are_said_to_be(loader, name, monkeypatch):
    monkeypatch.setattr("mmseg.datasets.transforms.loading.gdal", object(), raising=False)
    cfg = config([], "mmseg")
    cfg.test_dataloader.dataset.pipeline = [loader, dict(type="PackSegInputs")][loader is None :]
    _, (step,) = describe_pipeline(cfg)
    assert step == {"type": f"{name} (how images are read)"}
    cfg.test_dataloader.dataset.pipeline[0] = dict(type="LoadImageFromFile", color_type="grayscale_ignore_orientation")
    assert describe_pipeline(cfg) == ("grayscale_ignore_orientation", [])


@pytest.mark.parametrize(
    "preprocessor, size",
    [
        (dict(type="mmseg.SegDataPreProcessor", test_cfg=dict(size_divisor=64)), (64, 128)),
        (dict(type="mmseg.SegDataPreProcessor", test_cfg=dict(size=(80, 96)), pad_val=1), (80, 96)),
        (dict(type="mmdet.DetDataPreprocessor", pad_size_divisor=32, pad_value=-1), (64, 96)),
        (dict(type="mmpretrain.ClsDataPreprocessor", pad_size_divisor=16), (48, 80)),
    ],
)
def test_what_the_preprocessor_pads_is_a_step(preprocessor, size):
    preprocessor = MODELS.build(dict(preprocessor, mean=[100.0, 110.0, 120.0], std=[50.0, 55.0, 60.0]))
    model = nn.Module()
    model.data_preprocessor = preprocessor
    normalization = measure_normalization(preprocessing_of(model), 3)
    steps = describe_padding(preprocessor, normalization)
    image = np.random.RandomState(0).randint(0, 256, (40, 72, 3)).astype(np.uint8)
    actual = normalization.apply(torch.from_numpy(apply(steps, image))[None])
    samples = [SegDataSample()] if "mmseg" in type(preprocessor).__module__ else None
    data = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)], data_samples=samples)
    expected = preprocessor(data, False)["inputs"]
    assert actual.shape[2:] == size
    torch.testing.assert_close(actual[..., :40, :72], expected[..., :40, :72], rtol=0, atol=1e-5)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.5 / 50)  # padded with a whole number
    assert describe_padding(nn.Identity(), normalization) == []
