# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models import DetDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor
from mmseg.models import SegDataPreProcessor
from torch import nn

from mmrepmlp.export import ExportError
from mmrepmlp.export.normalization import measure_normalization, preprocessing_of

KINDS = {
    "mmpretrain": lambda mean, std, flip: ClsDataPreprocessor(mean, std, to_rgb=flip),
    "mmseg": lambda mean, std, flip: SegDataPreProcessor(mean, std, bgr_to_rgb=flip),
    "mmdet": lambda mean, std, flip: DetDataPreprocessor(mean, std, bgr_to_rgb=flip, pad_size_divisor=32),
}
numbers = st.lists(st.floats(1, 250), min_size=3, max_size=3)


def images(height=32, width=64, channels=3):
    return torch.randint(0, 256, (2, height, width, channels)).to(torch.uint8)


def holder(preprocessor):
    model = nn.Module()
    model.data_preprocessor = preprocessor
    return model


@pytest.mark.parametrize("kind", KINDS)
@given(mean=numbers, std=numbers, flip=st.booleans())
def test_normalization_is_what_the_preprocessor_does(kind, mean, std, flip):
    preprocess = preprocessing_of(holder(KINDS[kind](mean, std, flip)))
    found = measure_normalization(preprocess, 3)
    assert found.channels == ((2, 1, 0) if flip else (0, 1, 2))
    torch.testing.assert_close(found.scale, tuple(1 / s for s in std), rtol=1e-5, atol=0)
    given = images()
    torch.testing.assert_close(found.apply(given), preprocess(given), rtol=1e-5, atol=1e-4)
    assert torch.equal(found.undo(preprocess(given)), given)


def test_without_mean_and_with_one_channel():
    found = measure_normalization(preprocessing_of(holder(ClsDataPreprocessor(to_rgb=False))), 1)
    assert (found.channels, found.scale, found.shift) == ((0,), (1.0,), (0.0,))


@pytest.mark.parametrize(
    "more", [lambda x: x.square(), lambda x: x.mean(1, keepdim=True).expand_as(x), lambda x: x[:, :, 1:]]
)
def test_a_preprocessor_that_does_more_is_refused(more):
    preprocess = preprocessing_of(holder(ClsDataPreprocessor([1.0] * 3, [2.0] * 3)))
    with pytest.raises(ExportError, match=r"does more than scale and shift .*deploy --raw"):
        measure_normalization(lambda x: more(preprocess(x)), 3)


def test_images_of_16_bits_come_back_exactly():
    preprocess = preprocessing_of(holder(SegDataPreProcessor([30000.0] * 3, [15000.0] * 3, bgr_to_rgb=True)))
    found = measure_normalization(preprocess, 3, torch.uint16)
    given = torch.arange(3 * 65536).view(1, 256, 256, 3).remainder(65536).to(torch.uint16)
    assert torch.equal(found.undo(preprocess(given)).to(torch.int32), given.to(torch.int32))
    narrow = measure_normalization(preprocess, 3)
    assert narrow.dtype is torch.uint8 and found.dtype is torch.uint16
    with pytest.raises(ExportError, match=r"values from 0 to 65535, but the graph takes 0 to 255"):
        narrow.undo(preprocess(given))


def test_grey_images_that_the_preprocessor_makes_of_three_channels():
    preprocess = preprocessing_of(holder(SegDataPreProcessor([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])))
    found, grey = measure_normalization(preprocess, 1), images(channels=1)
    torch.testing.assert_close(found.apply(grey), preprocess(grey))
    assert torch.equal(found.undo(preprocess(grey)), grey)
