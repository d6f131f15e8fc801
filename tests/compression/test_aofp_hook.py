# SPDX-License-Identifier: Apache-2.0
"""AOFP: the damage done without filters, the search by halves, and what is found."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook

from mmrepmlp.compression import AOFPHook, CompressionError
from mmrepmlp.compression.aofp_hook import Search
from mmrepmlp.compression.compress import compress
from tests.compression.toy import ToyClassifier, runner, samples
from tests.helpers import relative_error

SHORT = dict(type="mmrepmlp.AOFPHook", target=0.6, threshold=0.02, per_half=10, start=4)


def test_halves_are_searched_down_to_those_that_can_be_spared():
    def judged(search: Search, damage: list[float]) -> Search:
        search.damage, search.trials = 3 * torch.tensor(damage, dtype=torch.float64), torch.full((len(damage),), 3.0)
        return search.halve(0.01)

    found = judged(Search.start([1] * 6), [0.5, 0.001, 0.002, 0.3, 0.004, 0.9])
    assert found.mask == [1, 0, 0, 1, 0, 1] and found.space == [0, 3, 5]  # 1, 2 and 4 can be spared
    deeper = judged(Search.start([1] * 6), [0.5, 0.001, 0.2, 0.3, 0.004, 0.9])
    assert deeper.mask == [1] * 6 and deeper.space == [1, 2, 4] and not deeper.damage.any()
    assert judged(deeper, [9, 0.001, 9, 9, 9, 9]).mask == [1, 0, 1, 1, 1, 1]  # the half of three is one
    again = judged(Search([1] * 6, [1, 4], torch.zeros(6), torch.zeros(6), 7), [9, 0.5, 9, 9, 0.6, 9])
    assert again.mask == [1] * 6 and again.space == list(range(6)) and again.steps == 0
    assert judged(Search.start([0, 1, 0]), [0, 0, 0]).mask == [0, 1, 0]  # one filter stays


def test_the_damage_is_the_change_behind_norm_and_activation_of_the_next_layer(tmp_path):
    run = runner(tmp_path, dict(SHORT, layers=["conv1"], start=0, per_half=40))
    hook, seen = next(hook for hook in run.hooks if isinstance(hook, AOFPHook)), {}
    reference = {}

    def remember(module, args, inputs):
        model = copy.deepcopy(run.model)  # before its statistics move
        model._forward_pre_hooks.clear(), model._forward_hooks.clear()
        ablated = hook.ablated["conv1"]
        with torch.no_grad():
            x = F.relu(model.bn1(model.conv1(inputs["inputs"])))
            base = F.relu(model.bn2(F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=1)))
            x = x.clone()
            x[:, ablated] = 0
            without = F.relu(model.bn2(F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=1)))
        reference[hook.step] = (base - without).double().square().sum() / base.double().square().sum()

    def note(module, inputs, outputs):
        seen[hook.step] = (hook.ablated["conv1"], hook.changes["conv1"].clone())

    class Remember(Hook):
        priority = "LOWEST"

        def before_train(self, runner):
            runner.model.register_forward_pre_hook(remember, with_kwargs=True)
            runner.model.register_forward_hook(note)

    run.register_hook(Remember())
    run.train()
    assert len(reference) == 80
    for iteration, value in list(reference.items())[:38]:
        ablated, (change, base) = seen[iteration]
        assert len(ablated) == 4
        assert (change / base).item() == pytest.approx(value.item(), rel=1e-4)


@pytest.fixture
def planted():
    """A network with filters that hardly matter: 2, 5 and 6 of ``conv1``."""
    torch.manual_seed(0)
    model = ToyClassifier()
    with torch.no_grad():
        model.conv2.weight[:, [2, 5, 6]] *= 1e-3
    return model


def test_filters_that_do_not_matter_are_found_and_their_removal_is_exact(planted, tmp_path):
    torch.save(dict(state_dict=planted.state_dict(), meta={}), tmp_path / "planted.pth")
    hook = dict(SHORT, layers=["conv1"], threshold=1e-3, target=0.65)
    optimizer = dict(type="SGD", lr=1e-6, momentum=0.9)
    settings = dict(optimizer=optimizer, load_from=str(tmp_path / "planted.pth"), epochs=60)
    model = runner(tmp_path / "whole", hook, **settings).train()
    kept = torch.load(tmp_path / "whole/epoch_60.pth", weights_only=False)["compression"]
    assert kept["AOFPHook"]["masks"] == {"conv1": [1, 1, 0, 1, 1, 0, 0, 1]}
    model = model.double().eval()
    compressed = compress(model, kept)
    assert compressed.model.conv1.out_channels == 5
    images = torch.stack([sample["inputs"] for sample in samples(8)]).double()
    assert relative_error(compressed.model(images), model(images)) < 1e-12


def test_a_search_that_finds_nothing_leaves_no_trace_in_the_training(tmp_path):
    undisturbed = runner(tmp_path / "plain", None).train()
    model = runner(tmp_path / "searched", dict(SHORT, threshold=0)).train()
    torch.testing.assert_close(model.state_dict(), undisturbed.state_dict(), rtol=0, atol=0)


def test_a_training_resumes_bit_for_bit(tmp_path):
    model = runner(tmp_path / "whole", SHORT).train()
    checkpoint = str(tmp_path / "whole/epoch_10.pth")
    again = runner(tmp_path / "again", SHORT, load_from=checkpoint, resume=True).train()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    whole, other = (
        torch.load(tmp_path / name / "epoch_20.pth", weights_only=False)["compression"]["AOFPHook"]
        for name in ("whole", "again")
    )
    assert whole["masks"] == other["masks"]
    torch.testing.assert_close(whole["searches"], other["searches"], rtol=0, atol=0)


def test_recomputed_layers_are_listened_to_once(tmp_path):
    run = runner(tmp_path, dict(SHORT, layers=["conv1"]))
    hook = next(hook for hook in run.hooks if isinstance(hook, AOFPHook))
    run.train()
    calls = hook.changes["conv1"].clone()
    run.model.train()
    run.model.conv2(torch.randn(2, 8, 8, 8))  # outside of a pass of the model, as in the backward pass
    assert torch.equal(hook.changes["conv1"], calls)


def test_what_cannot_work_is_one_sentence(tmp_path):
    with pytest.raises(CompressionError, match=r"has 80 steps, but .* start \+ per_half = 1500"):
        runner(tmp_path, dict(type="mmrepmlp.AOFPHook")).train()
    with pytest.raises(ValueError, match="target=1"):
        AOFPHook(target=1)
    with pytest.raises(CompressionError, match="no filter of 'fc' can be removed"):
        runner(tmp_path, dict(SHORT, layers=["fc"])).train()
