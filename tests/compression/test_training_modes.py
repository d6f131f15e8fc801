# SPDX-License-Identifier: Apache-2.0
"""The methods in trainings of other kinds: accumulated gradients, float16, re-parameterized gradients."""

import math

import pytest
import torch

from mmrepmlp.compression.compactor import compactors_in
from mmrepmlp.compression.gradient_hook import GradientHook, learning_rates
from tests.compression.test_csgd_hook import FAST, GENEROUS
from tests.compression.test_gsm_hook import LAYERS, OPTIMIZER
from tests.compression.test_resrep import SHORT, TOY
from tests.compression.toy import runner

SGD = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
HOOKS = dict(
    csgd=(GENEROUS, FAST, dict(epochs=40)),
    gsm=(dict(type="mmrepmlp.GSMHook", nonzero=0.3, layers=LAYERS), dict(OPTIMIZER, weight_decay=2.4), {}),
    aofp=(dict(type="mmrepmlp.AOFPHook", target=0.6, threshold=10.0, per_half=5, start=2), SGD, {}),
    resrep=(SHORT, SGD, dict(model=TOY, epochs=300)),
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
    run, hook = runner(tmp_path, None, optim_wrapper=dict(optimizer=SGD, accumulative_counts=accumulated)), Foresight()
    run.register_hook(hook)
    run.train()
    assert len(hook.seen) == math.ceil(80 / accumulated) and hook.foreseen.tolist() == hook.seen
