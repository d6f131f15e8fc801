# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mmengine.runner import load_checkpoint
from torch import nn

from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.checkpoint.adapt import log_once
from mmrepmlp.checkpoint.tiles import infer_tile, resample_bias, resample_tiles, resample_weight, resize_matrix
from mmrepmlp.models import RepMLPBlock, RepMLPNet, RepMLPv1Block
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


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """Messages of the adapter."""
    messages = []
    monkeypatch.setattr("mmrepmlp.checkpoint.adapt.print_log", lambda message, _: messages.append(message))
    return messages


@pytest.mark.parametrize("img_size", [96, 48, (64, 96)])
@pytest.mark.parametrize("deploy", [False, True])
def test_a_model_of_another_img_size_loads_and_says_so(img_size, deploy, logged):
    source = randomize(RepMLPNet(TINY, 64), torch.Generator().manual_seed(0)).eval()
    if deploy:
        source.switch_to_deploy()
    moved = RepMLPNet(TINY, img_size, deploy=deploy).eval()
    moved.load_state_dict(source.state_dict(), strict=True)
    expected, sizes = resample_tiles(
        source.state_dict(), [(s[0].repmlp_block.h, s[0].repmlp_block.w) for s in moved.stages]
    )
    torch.testing.assert_close(moved.state_dict(), expected, rtol=0, atol=0)
    assert sizes[0] == ((16, 16), (moved.img_size[0] // 4, moved.img_size[1] // 4))
    assert f"stage 0 16x16 -> {sizes[0][1][0]}x{sizes[0][1][1]}" in logged[-1]
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


@pytest.mark.parametrize("old, new", [((8, 16), (16, 8)), ((8, 32), (16, 16))])
@pytest.mark.parametrize("deploy, whole", [(False, True), (True, False)])
def test_tiles_of_as_many_pixels_are_told_apart(old, new, deploy, whole, tmp_path, logged):
    image = [tuple(4 * side for side in tile) for tile in (old, new)]
    settings = dict(arch=dict(channels=[4], depths=[1], sharesets_nums=[2]), out_indices=(0,))
    source = randomize(RepMLPNet(**settings, img_size=image[0]), torch.Generator().manual_seed(0)).eval()
    save_checkpoint(nn.ModuleDict(dict(backbone=source)).state_dict(), tmp_path / "source.pth")
    moved = RepMLPNet(**settings, img_size=image[1], deploy=deploy).eval()
    load_checkpoint(nn.ModuleDict(dict(backbone=moved)) if whole else moved, str(tmp_path / "source.pth"), strict=True)
    assert len(logged) == 1 and logged[0].endswith("stage 0 {}x{} -> {}x{}.".format(*old, *new))
    if deploy:
        source.switch_to_deploy()
    name = "stages.0.0.repmlp_block.fc3.weight"
    if not deploy:
        expected = resample_weight(source.state_dict()[name], old, new)
        torch.testing.assert_close(moved.state_dict()[name], expected, rtol=0, atol=0)
    assert not torch.equal(moved.state_dict()[name], source.state_dict()[name])
    log_once.cache_clear()
    moved.load_state_dict(dict(source.state_dict()))
    assert f"does not note tile sizes, taken as {new[0]}x{new[1]}" in logged[-1]
    torch.testing.assert_close(moved.state_dict()[name], source.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("deploy", [False, True])
def test_a_block_alone_knows_its_tile(deploy):
    settings = dict(channels=4, reparam_conv_kernels=(1, 3), num_sharesets=2)
    source = randomize(RepMLPBlock(**settings, h=2, w=4), torch.Generator().manual_seed(0)).double().eval()
    expected = RepMLPBlock(**settings, h=4, w=2).double().eval()
    expected.load_state_dict(dict(source.state_dict()), strict=True)  # which notes nothing
    expected.fc3.weight.data = resample_weight(source.fc3.weight.data, (2, 4), (4, 2))
    block = RepMLPBlock(**settings, h=4, w=2, deploy=deploy).double().eval()
    state = nn.Sequential(nn.ReLU(), source).state_dict()
    nn.Sequential(nn.ReLU(), block).load_state_dict(state, strict=True)
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    assert relative_error(block(x), expected(x)) < 1e-12


def test_other_partitions_are_said():
    source, other = (RepMLPv1Block(2, 2, 8, h, w) for h, w in [(2, 4), (4, 2)])
    with pytest.raises(ValueError, match=r"0.fc3 is for partitions of h=2 by w=4 pixels, the model has h=4 and w=2"):
        nn.Sequential(other).load_state_dict(nn.Sequential(source).state_dict())
