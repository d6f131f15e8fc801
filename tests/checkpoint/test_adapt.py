# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import Tensor, nn

from mmrepmlp.checkpoint.names import SYNONYMS, rename
from mmrepmlp.models import RepMLPNet
from tests.conftest import DATA, TINY
from tests.helpers import randomize

NATIVE = dict(arch=TINY, img_size=64)


def native_state(**arguments) -> dict[str, Tensor]:
    return randomize(RepMLPNet(**{**NATIVE, **arguments}), torch.Generator().manual_seed(0)).state_dict()


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)


@pytest.mark.slow
def test_names_and_shapes_of_the_released_models_load_strictly(official_shapes):
    for name, forms in official_shapes.items():
        states = {
            form: {tensor: torch.empty(shape, device="meta") for tensor, shape in forms[form].items()}
            for form in ("train", "deploy")
        }
        with torch.device("meta"):
            deployed = RepMLPNet(name[-4], int(name[-3:]), deploy=True)
            for state in states.values():
                deployed.load_state_dict(state, strict=True, assign=True)
            RepMLPNet(name[-4], int(name[-3:])).load_state_dict(states["train"], strict=True, assign=True)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_authors_checkpoints_in_every_wrapping(tiny_training_state, wrap, prefix, tmp_path):
    plain, wrapped, pretrained = (RepMLPNet(**NATIVE) for _ in range(3))
    plain.load_state_dict(tiny_training_state, strict=True)
    checkpoint = wrap({prefix + name: value for name, value in tiny_training_state.items()})
    untouched = copy.deepcopy(checkpoint)
    wrapped.load_state_dict(checkpoint, strict=True)
    assert_same_state(wrapped, plain.state_dict())
    torch.testing.assert_close(checkpoint, untouched, rtol=0, atol=0)

    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    pretrained.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "checkpoint.pth"))
    pretrained.init_weights()
    assert_same_state(pretrained, plain.state_dict())
    renamed = rename(tiny_training_state, SYNONYMS)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, renamed[name]), name


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("prefix", [None, "backbone."])
def test_pretrained_backbone_out_of_a_whole_model(prefix, deploy, tmp_path):
    state = native_state()
    whole = {**{f"backbone.{k}": v for k, v in state.items()}, "head.fc.weight": torch.zeros(5, 64)}
    torch.save({"state_dict": whole}, tmp_path / "classifier.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "classifier.pth"), prefix=prefix)
    model, expected = RepMLPNet(**NATIVE, init_cfg=init_cfg, deploy=deploy), RepMLPNet(**NATIVE)
    model.init_weights()
    expected.load_state_dict(state)
    if deploy:
        expected.switch_to_deploy()
    assert_same_state(model, expected.state_dict())


def test_folding_takes_the_kernels_from_the_checkpoint():
    state = native_state(reparam_conv_kernels=(1, 3, 5))
    expected = RepMLPNet(**NATIVE, reparam_conv_kernels=(1, 3, 5))
    expected.load_state_dict(state)
    expected.switch_to_deploy()
    deployed = RepMLPNet(**NATIVE, reparam_conv_kernels=(1, 3), deploy=True)
    deployed.load_state_dict(state, strict=True)
    assert_same_state(deployed, expected.state_dict())


def another(**changes) -> dict[str, Tensor]:
    return RepMLPNet({**TINY, **changes.pop("arch", {})}, **{"img_size": 64, **changes}).state_dict()


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(
    "state, message",
    [
        (lambda: another(arch=dict(depths=[1, 1, 3, 1])), r"depths \[1, 1, 3, 1\] \(the model: \[1, 1, 2, 1\]\)"),
        (lambda: another(arch=dict(channels=[8, 16, 32, 128])), r"channels \[8, 16, 32, 128\]"),
        (lambda: another(arch=dict(sharesets_nums=[1, 2, 4, 16])), r"sharesets_nums \[1, 2, 4, 16\]"),
        (lambda: dict(another(img_size=(32, 96))), r"fc3.*tiles of 192 pixels, .* 16:16 .*img_size of the checkpoint"),
        (lambda: another(globalperceptron_ratio=2), r"gp_channels \[\[4\], \[8\], \[16, 16\], \[32\]\]"),
        (lambda: {"layer1.0.conv1.weight": torch.zeros(1)}, "does not hold a RepMLPNet: its names are layer1"),
    ],
)
def test_another_network_is_refused_even_where_loading_is_not_strict(state, message, deploy):
    model = RepMLPNet(**NATIVE, deploy=deploy)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state(), strict=False)
    assert_same_state(model, before)


def test_other_kernels_are_refused_in_training_form():
    with pytest.raises(ValueError, match=r"reparam_conv_kernels \[3\] \(the model: \[1, 3\]\)"):
        RepMLPNet(**NATIVE).load_state_dict(native_state(reparam_conv_kernels=(3,)))


def test_deployed_weights_cannot_become_training_form():
    injected = torch.load(DATA / "tiny_official_deploy.pth", weights_only=True)
    for state, form in ((injected, "injected"), (RepMLPNet(**NATIVE, deploy=True).state_dict(), "deploy")):
        with pytest.raises(ValueError, match=f"{form} form, the model in training form.*deploy=True"):
            RepMLPNet(**NATIVE).load_state_dict(state)


def test_a_gap_in_a_state_dict_that_is_to_be_folded_is_named():
    state = native_state()
    del state["stages.2.1.repmlp_block.repconv3.bn.running_var"]
    with pytest.raises(ValueError, match=r"missing: stages\.2\.1\.repmlp_block\.repconv3\.bn\.running_var"):
        RepMLPNet(**NATIVE, deploy=True).load_state_dict(state, strict=False)


@pytest.mark.parametrize("part", ["patch_embed.", "stages.0.", "stages.2.", "stages.3.0.norm1", "final_norm."])
def test_a_part_of_a_state_dict_loads_where_loading_is_not_strict(part):
    model, state = RepMLPNet(**NATIVE), native_state()
    given = {name: value for name, value in state.items() if name.startswith(part)}
    result = model.load_state_dict(given, strict=False)
    missing = {name for name in set(state) - set(given) if not name.endswith("num_batches_tracked")}
    assert not result.unexpected_keys and set(result.missing_keys) == missing
    assert all(torch.equal(model.state_dict()[name], value) for name, value in given.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(given)


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype, deploy):
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in native_state().items()}
    model, expected = RepMLPNet(**NATIVE, deploy=deploy), RepMLPNet(**NATIVE)
    model.load_state_dict(state)
    expected.load_state_dict({name: value.to(torch.float32) for name, value in state.items()})
    if deploy:
        expected.switch_to_deploy()
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()), rtol=1e-6, atol=1e-6)
