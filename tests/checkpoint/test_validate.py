# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.checkpoint import check_state_dict
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
    for load in (lambda s: check_state_dict(model.state_dict(), s), model.load_state_dict):
        with pytest.raises(ValueError, match=f"does not fit.*{message}"):
            load(dict(state))
    with pytest.raises(ValueError, match=message):  # folded on the way in
        RepMLPNet(TINY, img_size=64, deploy=True).load_state_dict(state)


def test_names_and_shapes(model, state):
    del state["patch_embed.projection.weight"]
    state["stray"] = torch.zeros(1)
    state[FC3] = torch.zeros(2, 3)
    with pytest.raises(ValueError) as error:
        check_state_dict(model.state_dict(), state)
    assert "missing: patch_embed.projection.weight; unexpected: stray; of another shape" in str(error.value)
    assert f"{FC3} (2, 3) (the model: (64, 16, 1, 1))" in str(error.value)


def test_ten_names_and_the_count_of_the_rest(model, state):
    names = list(state)
    with pytest.raises(ValueError) as error:
        check_state_dict(model.state_dict(), {})
    assert str(error.value).endswith(f"missing: {', '.join(names[:10])} and {len(names) - 10} more.")


def test_half_precision_is_no_fault(model, state):
    check_state_dict(model.state_dict(), {k: v.half() if v.is_floating_point() else v for k, v in state.items()})
