# SPDX-License-Identifier: Apache-2.0
"""The methods in trainings of other kinds: accumulated gradients, float16, re-parameterized gradients."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from torch import Tensor
from torch.optim import SGD

from mmrepmlp.compression import CompressionError, GSMHook, find_groups
from mmrepmlp.compression.compactor import compactors_in
from mmrepmlp.compression.gradient_hook import GradientHook, learning_rates
from mmrepmlp.compression.gsm_hook import sparse_weights
from mmrepmlp.models import RepMLPNet
from tests.compression.test_csgd_hook import CLUSTERS, FAST, GENEROUS, following
from tests.compression.test_gsm_hook import LAYERS, OPTIMIZER
from tests.compression.test_resrep import SHORT, TOY
from tests.compression.toy import runner

USUAL = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
HOOKS = dict(
    csgd=(GENEROUS, FAST, dict(epochs=40)),
    gsm=(dict(type="mmrepmlp.GSMHook", nonzero=0.3, layers=LAYERS), dict(OPTIMIZER, weight_decay=2.4), {}),
    aofp=(dict(type="mmrepmlp.AOFPHook", target=0.6, threshold=10.0, per_half=5, start=2), USUAL, {}),
    resrep=(SHORT, USUAL, dict(model=TOY, epochs=200)),
)


@pytest.mark.parametrize("hook, optimizer, settings", HOOKS.values(), ids=HOOKS)
def test_a_training_with_accumulated_gradients_resumes_bit_for_bit(hook, optimizer, settings, tmp_path):
    settings = {"epochs": 20, **settings, "optim_wrapper": dict(optimizer=optimizer, accumulative_counts=2)}
    model = runner(tmp_path / "whole", hook, **settings).train()
    checkpoint = str(tmp_path / f"whole/epoch_{settings['epochs'] // 2}.pth")
    again = runner(tmp_path / "again", hook, load_from=checkpoint, resume=True, **settings).train()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    kept = torch.load(tmp_path / f"whole/epoch_{settings['epochs']}.pth", weights_only=False)["compression"]
    if hook["type"] == "mmrepmlp.AOFPHook":  # something was found
        assert not all(map(all, kept["AOFPHook"]["masks"].values()))
    for compactor in compactors_in(model).values():
        assert (compactor.mask == 0).any() and ((compactor.norms() < 1e-5) == (compactor.mask == 0)).all()


class Foresight(GradientHook):
    """Notes which learning rates are to come, and which come."""

    def prepare(self, runner, state):
        (self.foreseen,), self.seen = learning_rates(runner), []

    def before_step(self, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("accumulated", [1, 3])
def test_schedules_are_foreseen_step_by_step(accumulated, tmp_path):
    run, hook = (
        runner(tmp_path, None, optim_wrapper=dict(optimizer=USUAL, accumulative_counts=accumulated)),
        Foresight(),
    )
    run.register_hook(hook)
    run.train()
    assert len(hook.seen) == math.ceil(80 / accumulated) and hook.foreseen.tolist() == hook.seen


@pytest.mark.parametrize("fused, scales, refused", [(True, True, True), (False, True, False), (True, False, False)])
def test_a_fused_optimizer_that_unscales_gradients_by_itself_is_refused(fused, scales, refused):
    wrapper = AmpOptimWrapper.__new__(AmpOptimWrapper)  # whose own __init__ asks for a GPU
    OptimWrapper.__init__(wrapper, SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    wrapper.optimizer.param_groups[0]["fused"] = fused
    wrapper.loss_scaler = SimpleNamespace(is_enabled=lambda: scales)
    with pytest.raises(CompressionError, match="GradientHook .* fused .* float16") if refused else nullcontext():
        GradientHook().before_train(SimpleNamespace(optim_wrapper=wrapper, iter=0))
    assert len(wrapper.optimizer._optimizer_step_pre_hooks) == (not refused)


WIDTHS = dict(out_indices=(1,), ffn_channels=[[8], [8]], gp_channels=[[8], [8]])


class Reparameterized:
    """A RepMLPNet whose ``fc3`` stand for sums, with the optimizer that moves them so."""

    def __init__(self, **settings) -> None:
        torch.manual_seed(0)
        arch = dict(channels=[8, 16], depths=[1, 1], sharesets_nums=[2, 4])
        network = RepMLPNet(arch, img_size=32, gradient_reparam=True, **WIDTHS)
        self.network = network.double().train()
        constructor = dict(optimizer=dict(type="SGD", **settings), constructor="mmrepmlp.RepOptimizerConstructor")
        self.optimizer = build_optim_wrapper(self.network, constructor).optimizer
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        self.sums = {names[weight.parameter(self.optimizer)]: weight.addition for weight in self.optimizer.weights}
        assert len(self.sums) == 2 and all(name.endswith("fc3.weight") for name in self.sums)

    def step(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Take a step; returns the gradients of the loss, and of the sums in place of those that stand for them."""
        self.optimizer.zero_grad()
        (features,) = self.network(torch.randn(4, 3, 32, 32, dtype=torch.float64))
        (features - torch.randn_like(features)).square().sum().backward()
        plain = {name: parameter.grad.clone() for name, parameter in self.network.named_parameters()}
        sums = {name: addition.transform(plain[name]) for name, addition in self.sums.items()}
        self.optimizer.step()
        return plain, {**plain, **sums}


def test_gsm_picks_among_the_gradients_of_sums():
    training, share, seen = Reparameterized(lr=1e-3, momentum=0.9, weight_decay=1e-3), 0.2, {}
    hook = GSMHook(share)
    hook.weights = sparse_weights(training.network, None)
    training.optimizer.register_step_pre_hook(hook.enter_step)
    training.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: weight.grad.clone() for name, weight in hook.weights.items()})
    )
    count = int(share * sum(weight.numel() for weight in hook.weights.values()))

    def picked(gradients: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
        scores = {name: (gradients[name] * weight).abs() for name, weight in weights.items()}
        threshold = torch.cat([score.flatten() for score in scores.values()]).sort().values[-count]
        return {name: torch.where(score >= threshold, gradients[name], 0.0) for name, score in scores.items()}

    for _ in range(10):
        before = {name: weight.detach().clone() for name, weight in hook.weights.items()}
        plain, sums = training.step()
        torch.testing.assert_close(seen, picked(sums, before), rtol=0, atol=0)
        assert sum(int((gradient != 0).sum()) for gradient in seen.values()) == count
        others = picked(plain, before)
        assert any(not torch.equal(others[name] != 0, gradient != 0) for name, gradient in seen.items())
        assert all(torch.equal(training.network.get_parameter(name).grad, plain[name]) for name in training.sums)


def test_csgd_pulls_beside_the_gradients_of_sums():
    lr, momentum, decay, strength = 2e-3, 0.9, 1e-3, 2.0
    training = Reparameterized(lr=lr, momentum=momentum, weight_decay=decay)
    following(training.network, training.optimizer, strength)
    names = [f"{name}.weight" for name in find_groups(training.network)]
    assert len(names) == 4

    def deviation(name: str) -> Tensor:
        weight = training.network.get_parameter(name).detach()
        return weight[CLUSTERS.index(0)] - weight[torch.tensor(CLUSTERS) == 0].mean(0)

    expected = {name: deviation(name) for name in names}
    weights = {name: training.network.get_parameter(name).detach().clone() for name in training.sums}
    first = {name: value.norm() for name, value in expected.items()}
    speeds = {name: torch.zeros_like(value) for name, value in {**expected, **weights}.items()}
    for _ in range(60):
        _, sums = training.step()
        for name in names:
            speeds[name] = momentum * speeds[name] + (strength + decay) * expected[name]
            expected[name] = expected[name] - lr * speeds[name]
            torch.testing.assert_close(deviation(name), expected[name], rtol=1e-9, atol=1e-13)
        for name in weights:
            speeds[name] = momentum * speeds[name] + sums[name] + decay * weights[name]
            weights[name] = weights[name] - lr * speeds[name]
            torch.testing.assert_close(
                training.network.get_parameter(name).detach(), weights[name], rtol=1e-11, atol=1e-13
            )
    assert all(expected[name].norm() < 0.3 * first[name] for name in names)
