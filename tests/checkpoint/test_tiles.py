# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmrepmlp.checkpoint.tiles import infer_tile, resample_bias, resample_tiles, resample_weight, resize_matrix
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY
from tests.helpers import randomize, relative_error

sides = st.integers(1, 7)
tiles = st.tuples(sides, sides)


def random_weight(sets: int, tile: tuple[int, int]) -> torch.Tensor:
    pixels = tile[0] * tile[1]
    return torch.randn(sets * pixels, pixels, 1, 1, dtype=torch.float64)


@given(sets=st.integers(1, 3), tile=tiles)
def test_the_same_size_is_the_identity(sets, tile):
    weight = random_weight(sets, tile)
    assert torch.equal(resize_matrix(tile, tile), torch.eye(tile[0] * tile[1], dtype=torch.float64))
    torch.testing.assert_close(resample_weight(weight, tile, tile), weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(resample_bias(weight[:, 0, 0, 0], tile, tile), weight[:, 0, 0, 0], rtol=0, atol=1e-12)


@given(sets=st.integers(1, 3), old=tiles, new=tiles)
def test_a_constant_image_keeps_its_response(sets, old, new):
    weight = random_weight(sets, old)
    response = weight.flatten(1).sum(1)
    resampled = resample_weight(weight, old, new)
    assert resampled.shape == (sets * new[0] * new[1], new[0] * new[1], 1, 1)
    torch.testing.assert_close(resampled.flatten(1).sum(1), resample_bias(response, old, new), rtol=1e-9, atol=1e-9)
    # A response that is the same everywhere stays the same everywhere.
    even = torch.full((sets * old[0] * old[1],), 3.0, dtype=torch.float64)
    assert (resample_bias(even, old, new) - 3).abs().max() < 1e-12


@given(old=tiles, more=tiles)
def test_a_larger_tile_computes_what_the_smaller_did(old, more):
    new = (old[0] + more[0], old[1] + more[1])
    weight, image = random_weight(1, old), torch.randn(old[0] * old[1], dtype=torch.float64)

    def enlarge(pixels):
        return F.interpolate(pixels.view(1, 1, *old), new, mode="bilinear", align_corners=False).flatten()

    out = resample_weight(weight, old, new).flatten(1) @ enlarge(image)
    torch.testing.assert_close(out, enlarge(weight.flatten(1) @ image), rtol=1e-9, atol=1e-9)
    there_and_back = resample_weight(resample_weight(weight, old, new), new, old)
    torch.testing.assert_close(there_and_back, weight, rtol=1e-9, atol=1e-9)


def test_the_tile_is_told_by_the_number_of_pixels():
    assert infer_tile("fc3", 12, (3, 4)) == (3, 4)
    assert infer_tile("fc3", 48, (3, 4)) == (6, 8)
    assert infer_tile("fc3", 49, (3, 4)) == (7, 7)
    with pytest.raises(ValueError, match="fc3 is for tiles of 6 pixels, .* neither square nor of the aspect ratio 8:8"):
        infer_tile("fc3", 6, (8, 8))


@pytest.mark.parametrize("img_size", [96, 48, (64, 96)])
@pytest.mark.parametrize("deploy", [False, True])
def test_a_model_of_another_img_size_loads_and_says_so(img_size, deploy, caplog):
    source = randomize(RepMLPNet(TINY, 64), torch.Generator().manual_seed(0)).eval()
    if deploy:
        source.switch_to_deploy()
    moved = RepMLPNet(TINY, img_size, deploy=deploy).eval()
    with caplog.at_level(logging.INFO):
        moved.load_state_dict(source.state_dict(), strict=True)
    expected, changes = resample_tiles(
        source.state_dict(), [(s[0].repmlp_block.h, s[0].repmlp_block.w) for s in moved.stages]
    )
    torch.testing.assert_close(moved.state_dict(), expected, rtol=0, atol=0)
    assert changes[0] == f"stage 0 16x16 -> {moved.img_size[0] // 4}x{moved.img_size[1] // 4}"
    untouched = [name for name in expected if ".fc3." not in name]
    assert all(torch.equal(expected[name], source.state_dict()[name]) for name in untouched)


def test_resampling_comes_before_folding():
    source = randomize(RepMLPNet(TINY, 64), torch.Generator().manual_seed(0)).eval()
    moved, deployed = RepMLPNet(TINY, 96).eval(), RepMLPNet(TINY, 96, deploy=True).eval()
    for model in (moved, deployed):
        model.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert relative_error(deployed(x)[0], moved(x)[0]) < 1e-5
