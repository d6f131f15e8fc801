# SPDX-License-Identifier: Apache-2.0
import copy

import mmpretrain.models  # noqa: F401  registers the plain ResNet
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmrepmlp.models import RepMLPResNet
from tests.helpers import randomize, relative_error
from tests.models.repmlp_resnet.official import OfficialRepMLPResNet, convert
from tests.models.repmlp_resnet.test_network import BLOCKS, TINY, images, tiny


@pytest.fixture(scope="module", params=BLOCKS)
def official(request) -> OfficialRepMLPResNet:
    torch.manual_seed(0)
    network = OfficialRepMLPResNet(request.param, 8, 64, 2, (1, 3), 5)
    network.block = request.param
    return randomize(network, torch.Generator().manual_seed(0), 0.2).double().eval()


@pytest.fixture(scope="module")
def official_state(official) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(training=official.state_dict(), deploy=convert(official))


@torch.no_grad()
@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("origin", ["whole model", "data parallel", "Lightning", "classifier"])
def test_the_authors_checkpoints_load(official, official_state, form, deploy, origin):
    state = dict(official_state[form])
    if origin == "data parallel":
        state = {f"module.{name}": value for name, value in state.items()}
    elif origin == "Lightning":
        state = {f"model.{name}": value for name, value in state.items()} | {"loss.weight": torch.ones(5)}
    elif origin == "classifier":
        state = {f"backbone.{k}": v for k, v in state.items() if "linear" not in k} | {"head.fc.bias": torch.ones(5)}
    network = RepMLPResNet(official.block, **TINY, deploy=deploy).double().eval()
    if form == "deploy" and not deploy:
        with pytest.raises(ValueError, match="in deploy form, the model in training form, and a conversion cannot be"):
            network.load_state_dict(state)
        return
    network.load_state_dict(state, strict=True)
    for actual, expected in zip(network(images(dtype=torch.float64)), official(images(dtype=torch.float64))):
        assert relative_error(actual, expected) < 1e-10


@torch.no_grad()
def test_it_computes_and_converts_as_the_authors_network(official, official_state):
    network = RepMLPResNet(official.block, **TINY).double()
    network.load_state_dict({**official_state["training"]})
    x = images(4, dtype=torch.float64)
    for mode in (True, False):
        pairs = zip(copy.deepcopy(network).train(mode)(x), official.train(mode)(x), strict=True)
        for actual, expected in pairs:
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    network.switch_to_deploy()
    ours = network.state_dict()
    assert ours.keys() == {name for name in official_state["deploy"] if not name.startswith("linear.")}
    for name, value in ours.items():
        torch.testing.assert_close(value, official_state["deploy"][name], rtol=1e-10, atol=1e-10)


def test_another_image_size_keeps_its_own_global_perceptrons(tmp_path):
    """As the paper does for Cityscapes."""
    source = tiny("light")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "source.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "source.pth"))
    target = tiny("light", img_size=128, globalperceptron_reduction=(4, 2), init_cfg=init_cfg)
    before = copy.deepcopy(target.state_dict())
    target.init_weights()
    loaded = source.state_dict()
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if ".fc1_fc2." in name else loaded[name]), name
    message = (
        r"belong to another image size .*img_size=\(128, 128\).*maps 128 to 128 features \(the model: 512 to 128\)"
    )
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match=message):
        tiny("light", img_size=128, globalperceptron_reduction=(4, 2), deploy=True).load_state_dict(source.state_dict())


@pytest.mark.parametrize("deploy", [False, True])
def test_weights_of_other_networks_are_refused(deploy):
    network = tiny("light", deploy=deploy)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        resnet = MODELS.build(dict(type="ResNet", depth=50, base_channels=8, stem_channels=8))
    with pytest.raises(
        ValueError, match=r"does not hold a RepMLP-ResNet: its names are conv1.weight, .* Expected the authors'"
    ):
        network.load_state_dict(resnet.state_dict())
    with pytest.raises(ValueError, match="block='bottleneck', the model has block='light'"):
        network.load_state_dict(tiny("bottleneck").state_dict())
    broken = tiny("light").state_dict()
    broken["stage0.bn.running_var"][0] = -1
    with pytest.raises(ValueError, match="variance below zero: stage0.bn.running_var"):
        network.load_state_dict(broken)
    del broken["stage0.bn.running_var"]
    with pytest.raises((ValueError, RuntimeError), match="stage0.bn.running_var"):
        network.load_state_dict(broken)
