# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner.priority import get_priority

from mmrepmlp.apis import evaluate
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.engine import CheckWeightsHook
from tests.fixtures import CONFIG


def test_a_checkpoint_without_weights_to_load_is_named():
    load, runner = CheckWeightsHook().after_load_checkpoint, SimpleNamespace(model=torch.nn.Linear(1, 1))
    load(runner, {"state_dict": {"weight": torch.ones(1)}, "meta": {}})
    with pytest.raises(ValueError, match="holds weights under student, teacher"):
        load(runner, {name: {"a.weight": torch.ones(1)} for name in ("student", "teacher")})
    with pytest.raises(ValueError, match="holds no weights: its entries are epoch"):
        load(runner, {"epoch": 3})
    assert get_priority(EMAHook.priority) < get_priority(CheckWeightsHook.priority)


def test_the_authors_classifiers_are_loaded_as_they_are():
    model = torch.nn.ModuleDict(dict(head=torch.nn.ModuleDict(dict(fc=torch.nn.Linear(1, 1)))))
    value, runner = torch.ones(1), SimpleNamespace(model=model)
    for head in ("head", "linear"):
        checkpoint = {"model": {"stage0.conv.weight": value, f"{head}.weight": value, f"{head}.bias": value}}
        CheckWeightsHook().after_load_checkpoint(runner, checkpoint)
        assert checkpoint["state_dict"].keys() == {"backbone.stage0.conv.weight", "head.fc.weight", "head.fc.bias"}


@pytest.mark.slow
def test_an_evaluation_stops_instead_of_measuring_random_weights(trained, tmp_path):
    state = load_from_local(trained.checkpoint)["state_dict"]
    torch.save({"student": state, "teacher": state}, tmp_path / "x.pth")
    options = {**trained.options, "test_dataloader.dataset.indices": 8}
    with pytest.raises(ValueError, match="holds weights under student, teacher"):
        evaluate(CONFIG, tmp_path / "x.pth", str(tmp_path), cfg_options=options)
    evaluate(CONFIG, tmp_path / "x.pth", str(tmp_path), cfg_options={**options, "check_weights": False})
