# SPDX-License-Identifier: Apache-2.0
import copy
from types import MethodType, SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader

from mmrepmlp.engine import SwitchToDeployHook
from mmrepmlp.models import RepMLPNet, RepVGGConv2d
from mmrepmlp.reparam import convertible_modules
from tests.helpers import relative_error

ARCH = dict(channels=[8, 16], depths=[1, 1], sharesets_nums=[1, 2])


class Classifier(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = RepMLPNet(ARCH, 16, out_indices=(1,))
        self.fc = nn.Linear(16, 2)

    def forward(self, inputs, labels=None, mode="tensor"):
        logits = self.fc(self.backbone(inputs)[0].mean((2, 3)))
        if mode == "loss":
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return logits


class Logits(BaseMetric):
    """Keeps the logits of an evaluation."""

    default_prefix = "test"

    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        Logits.last = torch.stack(results)
        return dict(seen=len(results))


class Spy(Hook):
    """Notes the form of the model at each iteration."""

    priority = "VERY_LOW"

    def __init__(self):
        self.forms = []

    def _before_iter(self, runner, batch_idx, data_batch=None, mode="train"):
        self.forms.append((mode, runner.model.backbone.deploy))

    def before_save_checkpoint(self, runner, checkpoint):
        self.forms.append(("save", runner.model.backbone.deploy))


def collate(batch):
    return dict(inputs=torch.stack([x for x, _ in batch]), labels=torch.tensor([y for _, y in batch]))


@pytest.fixture
def make_runner(tmp_path):
    data = [(torch.randn(3, 16, 16), i % 2) for i in range(8)]

    def loader() -> DataLoader:
        return DataLoader(data, batch_size=4, collate_fn=collate)

    def make(*hooks) -> Runner:
        return Runner(
            model=Classifier(),
            work_dir=str(tmp_path),
            train_dataloader=loader(),
            val_dataloader=loader(),
            test_dataloader=loader(),
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            val_evaluator=Evaluator(Logits()),
            test_evaluator=Evaluator(Logits()),
            optim_wrapper=dict(type=OptimWrapper, optimizer=dict(type="SGD", lr=0.01)),
            custom_hooks=list(hooks),
            default_scope="mmengine",
            experiment_name=tmp_path.name,
        )

    return make


def test_a_test_run_is_converted(make_runner):
    spy = Spy()
    runner = make_runner(SwitchToDeployHook(), spy)
    trained = copy.deepcopy(runner.model).eval()
    runner.test()
    assert spy.forms == [("test", True)] * 2
    assert runner.model.backbone.deploy
    with torch.no_grad():
        expected = torch.cat([trained(**batch) for batch in runner.test_dataloader])
    assert relative_error(Logits.last, expected) < 1e-5


@pytest.mark.parametrize("val", [False, True])
def test_training_goes_on_in_training_form(make_runner, val):
    spy = Spy()
    runner = make_runner(SwitchToDeployHook(val=val), spy)
    model = runner.model
    runner.train()
    epoch = [("train", False)] * 2 + [("save", False)] + [("val", val)] * 2
    assert spy.forms == epoch * 2
    assert runner.model is model and not model.backbone.deploy


def test_averaged_weights_are_the_ones_converted(make_runner):
    ema = EMAHook(momentum=0.5)
    runner = make_runner(ema, SwitchToDeployHook(val=True))
    runner.train()
    averaged = copy.deepcopy(ema.ema_model.module).eval()
    assert not torch.equal(averaged.fc.weight, runner.model.fc.weight)
    with torch.no_grad():
        expected = torch.cat([averaged(**batch) for batch in runner.val_dataloader])
    assert relative_error(Logits.last, expected) < 1e-5
    trained = copy.deepcopy(runner.model.state_dict())
    runner.test()  # the hook puts its weights back into the model that it holds on to
    torch.testing.assert_close(ema.src_model.state_dict(), trained, rtol=0, atol=0)


def test_a_model_inside_a_distributed_wrapper_is_converted_there():
    model = Classifier()
    runner = SimpleNamespace(model=nn.DataParallel(model))
    hook = SwitchToDeployHook(val=True)
    hook.before_val_epoch(runner)
    assert runner.model.module.backbone.deploy and not model.backbone.deploy
    hook.after_val_epoch(runner)
    assert runner.model.module is model
    hook.before_test_epoch(runner)
    assert isinstance(runner.model, nn.DataParallel) and runner.model.module.backbone.deploy


class KeepingHead(nn.Module):
    """A head with a convertible layer that keeps tensors of the last iteration, as those of YOLACT and CondInst do."""

    def __init__(self):
        super().__init__()
        self.conv, self.plain = RepVGGConv2d(16, 2, 3, padding=1), nn.Linear(2, 2)

    def forward(self, x):
        self.kept = dict(parts=[InstanceData(scores=self.conv(x).mean((2, 3)))])
        return self.plain(self.kept["parts"][0].scores)


def test_what_is_not_converted_is_not_copied():
    model = Classifier()
    model.head, model.forward = KeepingHead(), MethodType(lambda self, x: self.head(self.backbone(x)[0]), model)
    hook, runner, x = SwitchToDeployHook(val=True), SimpleNamespace(model=model), torch.randn(2, 3, 16, 16)
    model(x)
    expected = model.eval()(x).detach()
    hook.before_val_epoch(runner)
    assert not convertible_modules(runner.model) and runner.model.fc is model.fc
    assert relative_error(runner.model(x), expected) < 1e-5
    hook.after_val_epoch(runner)
    assert runner.model is model and len(convertible_modules(model)) == 2
    assert torch.equal(model(x), expected)
