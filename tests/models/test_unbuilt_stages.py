# SPDX-License-Identifier: Apache-2.0
"""Stages behind the last one that is returned get no gradient, so they are not built."""

import pytest
import torch

from mmrepmlp.models import RepMLPNet, RepMLPResNet, RepOptVGG
from tests.conftest import TINY
from tests.helpers import randomize

OUT_INDICES = [(0,), (0, 1), (0, 1, 2), (1, 2), (2,), (0, -2), (3,), (0, 3)]


@pytest.fixture(scope="module")
def full():
    model = RepMLPNet(TINY, img_size=64, out_indices=(0, 1, 2, 3))
    return randomize(model, torch.Generator().manual_seed(0), spread=0.1).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(final_norm=False),
        dict(with_cp=True, drop_path_rate=0.5),
        dict(norm_eval=True),
        dict(frozen_stages=1),
        dict(deploy=True),
    ],
)
@pytest.mark.parametrize("out_indices", OUT_INDICES)
def test_every_parameter_gets_a_gradient(out_indices, settings):
    model = RepMLPNet(TINY, img_size=64, out_indices=out_indices, **settings).train()
    outputs = sum(x.square().mean() for x in model(torch.randn(2, 3, 64, 64)))
    if outputs.requires_grad:  # not all stages are frozen
        outputs.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("out_indices", OUT_INDICES)
def test_weights_of_the_whole_network_load_and_compute_the_same(full, out_indices, deploy):
    model = RepMLPNet(TINY, img_size=64, out_indices=out_indices, deploy=deploy).eval()
    state = full.state_dict()
    model.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = full(images)
        for actual, index in zip(model(images), sorted(i % 4 for i in out_indices), strict=True):
            torch.testing.assert_close(actual, maps[index], rtol=1e-4, atol=1e-5)
    model.switch_to_deploy()
    again = RepMLPNet(TINY, img_size=64, out_indices=out_indices, deploy=True)
    again.load_state_dict(model.state_dict(), strict=True)


def test_loading_is_strict_about_the_rest(full):
    model = RepMLPNet(TINY, img_size=64, out_indices=(0, 1))
    state = {name: value for name, value in full.state_dict().items() if name != "stages.1.0.norm1.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*stages\.1\.0\.norm1\.bias"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stages\.1\.0\.surprise"):
        model.load_state_dict({**full.state_dict(), "stages.1.0.surprise": torch.ones(1)})
    other = RepMLPNet({**TINY, "depths": [1, 2, 2, 1]}, img_size=64).state_dict()
    with pytest.raises(ValueError, match=r"another RepMLPNet: depths \[1, 2\] \(the model: \[1, 1\]\)"):
        model.load_state_dict(other)


@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_freezing_more_than_there_is_freezes_all(frozen_stages):
    model = RepMLPNet(TINY, img_size=64, out_indices=(0, 1), frozen_stages=frozen_stages).train()
    assert any(p.requires_grad for p in model.parameters()) == (frozen_stages < 2)


def test_layers_are_counted_as_built():
    model = RepMLPNet(TINY, img_size=64, out_indices=(0, 1))
    depths = [model.get_layer_depth(name)[0] for name, _ in model.named_parameters()]
    assert set(depths) == {0, 1, 2} and model.get_layer_depth("head", prefix="backbone.") == (3, 4)


OTHERS = {
    "RepMLPResNet": (RepMLPResNet, dict(base_channels=4, img_size=64, h=2, w=2, reparam_conv_kernels=(1,), groups=2)),
    "RepOptVGG": (RepOptVGG, dict(arch=dict(depths=[1, 2, 1, 1], channels=[4, 8, 8, 8]))),
    "hyper-search": (RepOptVGG, dict(arch=dict(depths=[1, 2, 1, 1], channels=[4, 8, 8, 8]), form="hyper_search")),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("out_indices", [(0,), (0, 1), (2,), (0, -2), (3,)])
def test_the_other_backbones_build_as_much(kind, out_indices):
    network, settings = OTHERS[kind]
    full = randomize(network(**settings, out_indices=(0, 1, 2, 3)), torch.Generator().manual_seed(0)).double().eval()
    images = torch.randn(2, 3, 64, 64).double()
    with torch.no_grad():
        maps = full(images)
    for deploy in (False, True) if kind != "hyper-search" else (False,):
        model = network(**settings, out_indices=out_indices, deploy=deploy).double().eval()
        model.load_state_dict(full.state_dict(), strict=True)
        with torch.no_grad():
            for actual, index in zip(model(images), sorted(i % 4 for i in out_indices), strict=True):
                torch.testing.assert_close(actual, maps[index], rtol=1e-10, atol=1e-10)
        sum(x.square().mean() for x in model.train()(images)).backward()
        assert all(p.grad is not None for p in model.parameters())
        with pytest.raises(RuntimeError, match=r"Unexpected key.*stage9"):
            model.load_state_dict({**model.state_dict(), "stage9.conv.weight": torch.ones(1)})


def test_scales_of_the_whole_network_serve(tmp_path):
    network, settings = OTHERS["hyper-search"]
    torch.save(randomize(network(**settings), torch.Generator().manual_seed(0)).state_dict(), tmp_path / "search.pth")
    model = RepOptVGG(settings["arch"], out_indices=(0, 1))
    model.load_scales(str(tmp_path / "search.pth"))
    assert set(model.blocks) == {"stage0", "stage1.0", "stage2.0", "stage2.1"}
    assert all(block.scales for block in model.blocks.values())
    with pytest.raises(ValueError, match="are those of another network"):
        RepOptVGG(dict(depths=[1, 1], channels=[4, 8]), strides=(2, 2, 2), out_indices=(0, 1)).load_scales(
            str(tmp_path / "search.pth")
        )
