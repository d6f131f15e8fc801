# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from timm.models._manipulate import adapt_input_conv

from mmrepmlp.checkpoint import adapt
from mmrepmlp.checkpoint.stem import adapt_channels, resize_patch
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY
from tests.helpers import randomize

WEIGHT = torch.randn(5, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3, 6, 12])
def test_channels_as_timm_adapts_them(channels):
    expected = adapt_input_conv(channels, WEIGHT)
    torch.testing.assert_close(adapt_channels(WEIGHT, channels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("given", [1, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 12])
def test_equal_channels_get_the_same_response(given, channels):
    weight = torch.randn(5, given, 4, 4, dtype=torch.float64)
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    before = F.conv2d(image.expand(-1, given, -1, -1), weight, stride=4)
    after = F.conv2d(image.expand(-1, channels, -1, -1), adapt_channels(weight, channels), stride=4)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch", [(8, 8), (6, 4), (5, 9)])
def test_a_larger_patch_computes_on_the_enlarged_image_what_the_smaller_does(patch):
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    enlarged = F.interpolate(image, patch, mode="bilinear", align_corners=False)
    resized = resize_patch(WEIGHT, patch)
    torch.testing.assert_close(F.conv2d(enlarged, resized), F.conv2d(image, WEIGHT), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(resize_patch(resized, (4, 4)), WEIGHT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(
    "settings", [dict(in_channels=1), dict(in_channels=4), dict(in_channels=12), dict(patch_size=2)]
)
def test_a_constant_image_keeps_its_features(settings, deploy, caplog):
    """A gray image without edges, after loading into other channels or patches."""
    source = randomize(RepMLPNet(TINY, img_size=64), torch.Generator().manual_seed(0), spread=0.1).double().eval()
    size = 64 * settings.get("patch_size", 4) // 4  # keeps the tiles
    model = RepMLPNet(TINY, img_size=size, deploy=deploy, **settings).double().eval()
    model.load_state_dict(source.state_dict())
    gray = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    with torch.no_grad():
        (expected,) = source(gray.expand(1, 3, 64, 64))
        (actual,) = model(gray.expand(1, settings.get("in_channels", 3), size, size))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    name = "patch_embed.projection.weight"
    others = [key for key in source.state_dict() if key != name and key in model.state_dict() and not deploy]
    assert all(torch.equal(model.state_dict()[key], source.state_dict()[key]) for key in others)


def test_the_change_is_logged(monkeypatch):
    lines = []
    monkeypatch.setattr(adapt, "print_log", lambda text, *_: lines.append(text))
    model = RepMLPNet(TINY, img_size=64, in_channels=4, patch_size=(4, 8))
    model.load_state_dict(RepMLPNet(TINY, img_size=(64, 32)).state_dict())
    assert lines == ["The stem is adapted: 3 -> 4 image channels, patches 4x4 -> 4x8."]
