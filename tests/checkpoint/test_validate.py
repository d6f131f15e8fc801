# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.checkpoint import check_state_dict, load_weights, needed
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY


@pytest.fixture
def model():
    return RepMLPNet(TINY, img_size=64)


@pytest.fixture
def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def fill(name, number):
    def change(state):
        state[name].view(-1)[-1] = number

    return change


def cast(name, dtype):
    return lambda state: state.update({name: state[name].to(dtype)})


FC3, VARIANCE = "stages.2.1.repmlp_block.fc3.weight", "stages.1.0.norm1.running_var"
FAULTS = [
    (fill(FC3, float("nan")), rf"not finite .*: {FC3}\."),
    (fill(VARIANCE, float("-inf")), f"not finite .*: {VARIANCE}"),
    (fill(VARIANCE, -1e-3), f"a variance below zero: {VARIANCE}"),
    (cast(FC3, torch.int32), rf"of another type: {FC3} torch.int32 \(the model: torch.float32\)"),
]


@pytest.mark.parametrize("spoil, message", FAULTS)
def test_values_that_no_network_has(model, state, spoil, message):
    check_state_dict(model.state_dict(), state)
    spoil(state)
    for load in (lambda s: check_state_dict(model.state_dict(), s), lambda s: load_weights(model, s)):
        with pytest.raises(ValueError, match=f"does not fit.*{message}"):
            load(dict(state))
    with pytest.raises((ValueError, RuntimeError), match=message.split(" ")[0]):
        model.load_state_dict(dict(state))
    with pytest.raises(ValueError, match=message):  # folded on the way in
        RepMLPNet(TINY, img_size=64, deploy=True).load_state_dict(state)


def test_what_is_not_finite_can_be_loaded_to_be_looked_at(model, state):
    state[FC3].view(-1)[-1] = float("nan")
    result = model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == [f"{FC3}: not finite (NaN or Inf)"] and not result.missing_keys
    assert model.state_dict()[FC3].isnan().sum() == 1
    with pytest.raises(RuntimeError, match=FC3):
        model.load_state_dict(state)


def test_masks_are_infinite_by_intent():
    model = torch.nn.Linear(2, 2, bias=False)
    model.register_buffer("mask", torch.full((2,), float("-inf")))
    assert not any(load_weights(model, model.state_dict()).values())


def test_what_is_not_loaded_is_named_by_kind():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("neck", "auxiliary_head", "head")})
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("auxiliary_head")}
    state |= {"head.weight": torch.ones(3, 2), "stray": torch.ones(1)}
    del state["neck.bias"]
    faults = load_weights(model, state)
    assert faults["unexpected"] == ["stray"] and faults["missing"][0] == "neck.bias" and len(faults["missing"]) == 3
    assert needed(faults)["missing"] == ["neck.bias"]
    (text,) = needed(faults)["of another shape"]
    assert text.startswith("head.weight") and "[3, 2]" in text and "[2, 2]" in text


def test_names_and_shapes(model, state):
    del state["patch_embed.projection.weight"]
    state["stray"] = torch.zeros(1)
    state[FC3] = torch.zeros(2, 3)
    with pytest.raises(ValueError) as error:
        check_state_dict(model.state_dict(), state)
    assert "missing: patch_embed.projection.weight; unexpected: stray; of another shape" in str(error.value)
    assert f"{FC3} [2, 3] (the model: [64, 16, 1, 1])" in str(error.value)


def test_ten_names_and_the_count_of_the_rest(model, state):
    names = list(state)
    with pytest.raises(ValueError) as error:
        check_state_dict(model.state_dict(), {})
    assert str(error.value).endswith(f"missing: {', '.join(names[:10])} and {len(names) - 10} more.")


def test_half_precision_is_no_fault(model, state):
    check_state_dict(model.state_dict(), {k: v.half() if v.is_floating_point() else v for k, v in state.items()})
