# SPDX-License-Identifier: Apache-2.0
"""C-SGD against its rule, filter by filter, and the rate at which filters become equal."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from mmrepmlp.compression import CompressionError, CSGDHook, find_groups
from mmrepmlp.compression.csgd_hook import cluster, pulled_parameters
from mmrepmlp.compression.reduce import equalize, merge_clusters
from mmrepmlp.reparam.compare import distance
from tests.compression.toy import ToyClassifier, runner, step
from tests.helpers import randomize

CLUSTERS = [0, 1, 0, 2, 1, 0, 3, 2]
GENEROUS = dict(type="mmrepmlp.CSGDHook", keep=0.5, strength=20.0)
FAST = dict(type="SGD", lr=0.1, momentum=0.5, weight_decay=1e-4)


def following(model: nn.Module, optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Attach the hook to an optimizer, for both layers and the same clusters."""
    hook = CSGDHook(strength=strength)
    groups = find_groups(model)
    hook.pulled = [
        pulled
        for group in groups.values()
        for pulled in pulled_parameters(model, group, torch.tensor(CLUSTERS), strength)
    ]
    optimizer.register_step_pre_hook(hook.enter_step)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_every_filter_follows_the_rule(momentum, nesterov):
    torch.manual_seed(0)
    model, lr, decay, strength = ToyClassifier().double().train(), 0.05, 1e-3, 0.3
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: torch.zeros_like(value) for name, value in expected.items()}
    optimizer = SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    following(model, optimizer, strength)
    for index in range(60):
        for name, gradient in step(model, optimizer, index).items():
            layer, _, kind = name.partition(".")
            pulled = strength if layer in ("conv1", "conv2") and kind == "weight" else 0.1 * strength
            rows, moved = expected[name], gradient + decay * expected[name]
            if layer in ("conv1", "conv2", "bn1", "bn2"):
                for j in range(8):  # filter by filter
                    members = [i for i in range(8) if CLUSTERS[i] == CLUSTERS[j]]
                    mean_gradient = sum(gradient[i] for i in members) / len(members)
                    mean_row = sum(rows[i] for i in members) / len(members)
                    moved[j] = mean_gradient + decay * rows[j] + pulled * (rows[j] - mean_row)
            buffers[name] = momentum * buffers[name] + moved
            expected[name] = rows - lr * (moved + momentum * buffers[name] if nesterov else buffers[name])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-13, msg=name)


def deviation(model: nn.Module) -> float:
    weight = model.conv2.weight.detach()
    return (weight[0] - (weight[0] + weight[2] + weight[5]) / 3).norm().item()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_deviations_shrink_at_the_rate_of_the_recurrence(momentum):
    torch.manual_seed(0)
    model, lr, decay, strength = ToyClassifier().double().train(), 0.01, 1e-3, 0.05
    optimizer = SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    following(model, optimizer, strength)
    pull = lr * (decay + strength)
    largest_root = max(abs(root) for root in quadratic_roots(1 + momentum - pull, momentum))
    for index in range(250):
        step(model, optimizer, index)
    before = deviation(model)
    for index in range(100):
        step(model, optimizer, index)
    assert (deviation(model) / before) ** (1 / 100) == pytest.approx(largest_root, abs=1e-6)


def quadratic_roots(b: float, c: float) -> tuple[complex, complex]:
    """Roots of z² - b z + c."""
    root = complex(b * b / 4 - c) ** 0.5
    return b / 2 + root, b / 2 - root


def test_beside_adamw_deviations_shrink_by_the_pull_and_the_decay():
    torch.manual_seed(0)
    model, lr, decay, strength = ToyClassifier().double().train(), 0.01, 0.05, 0.5
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=decay)
    following(model, optimizer, strength)
    before = deviation(model)
    for index in range(100):
        step(model, optimizer, index)
    factor = (1 - lr * strength) * (1 - lr * decay)
    assert deviation(model) / before == pytest.approx(factor**100, rel=1e-9)


@torch.no_grad()
def test_equal_filters_merge_exactly():
    torch.manual_seed(0)
    model = randomize(ToyClassifier(), torch.Generator().manual_seed(0)).double().eval()
    with torch.enable_grad():
        groups = find_groups(model)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for group in groups.values():
        equalize(model, group, CLUSTERS)
    expected, narrower = model(images), copy.deepcopy(model)
    for group in groups.values():
        merge_clusters(narrower, group, CLUSTERS)
    assert [narrower.conv1.out_channels, narrower.conv2.in_channels, narrower.conv2.out_channels] == [4, 4, 4]
    assert distance(narrower(images), expected)[1] < 1e-12
    forgotten = copy.deepcopy(narrower)  # what a plain removal would give
    forgotten.conv3.weight.copy_(model.conv3.weight[:, [0, 1, 3, 6]])
    assert distance(forgotten(images), expected)[1] > 0.01


def test_filters_are_clustered_by_their_distance():
    centers = 10 * torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    members = torch.tensor([0, 1, 0, 2, 2, 1])
    noise = 0.01 * torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    assert cluster(centers[members] + noise, 0.5) == members.tolist()


@pytest.mark.parametrize("sets, equal", [(1, False), (4, False), (3, True)])
def test_each_set_has_as_many_clusters_and_they_stay_in_their_set(sets, equal):
    weight = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    weight = weight[:1].expand_as(weight) if equal else weight
    clusters = cluster(weight, 0.5, sets)
    assert all(number % sets == index % sets for index, number in enumerate(clusters))
    assert set(clusters) == set(range(12))


def test_a_training_ends_in_equal_filters_and_resumes_bit_for_bit(tmp_path):
    model = runner(tmp_path / "whole", GENEROUS, optimizer=FAST).train()
    clusters = torch.load(tmp_path / "whole/epoch_20.pth", weights_only=False)["compression"]["CSGDHook"]["clusters"]
    for layer, norm in (("conv1", "bn1"), ("conv2", "bn2")):
        assert len(set(clusters[layer])) == 4
        for number in set(clusters[layer]):
            members = [i for i, value in enumerate(clusters[layer]) if value == number]
            for tensor in (*model.get_submodule(layer).parameters(), *model.get_submodule(norm).parameters()):
                torch.testing.assert_close(
                    tensor[members], tensor[members[:1]].expand_as(tensor[members]), rtol=0, atol=1e-5
                )
    checkpoint = str(tmp_path / "whole/epoch_10.pth")
    settings = dict(optimizer=FAST, load_from=checkpoint, resume=True)
    again = runner(tmp_path / "again", GENEROUS, **settings).train()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_schedule_that_leaves_filters_apart_is_refused(tmp_path):
    run = runner(tmp_path, dict(GENEROUS, strength=0.05))
    # The cosine's mean is half of 0.1, in 80 steps; a tenth of the strength is that of norms.
    power = 80 * 0.05 * (0.1 * 0.05) / (1 - 0.9)
    with pytest.raises(CompressionError, match=rf"by a factor of e\^{power:.1g}\d*, and they need e\^15. Train longer"):
        run.train()
    assert math.isclose(run.optim_wrapper.param_groups[0]["lr"], 0.1)  # looking ahead changed nothing


@pytest.mark.parametrize("settings", [dict(keep=0), dict(keep=1), dict(strength=0)])
def test_wrong_arguments(settings):
    with pytest.raises(ValueError, match="expected"):
        CSGDHook(**settings)


def test_other_optimizers_are_refused(tmp_path):
    with pytest.raises(CompressionError, match="optimizer type=RMSprop: expected SGD or AdamW"):
        runner(tmp_path, GENEROUS, optimizer=dict(type="RMSprop", lr=0.01)).train()


def test_resuming_without_clusters_is_refused(tmp_path):
    runner(tmp_path / "plain", None).train()
    run = runner(tmp_path / "again", GENEROUS, load_from=str(tmp_path / "plain/epoch_10.pth"), resume=True)
    with pytest.raises(CompressionError, match="without the state of CSGDHook"):
        run.train()
