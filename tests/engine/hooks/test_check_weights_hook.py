# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel
from mmengine.runner.priority import get_priority

from mmrepmlp.apis import evaluate
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.engine import CheckWeightsHook
from tests.fixtures import CONFIG


def test_a_checkpoint_without_weights_to_load_is_named():
    load, runner = CheckWeightsHook().after_load_checkpoint, run_of(torch.nn.Linear(1, 1))
    load(runner, {"state_dict": {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, "meta": {}})
    with pytest.raises(ValueError, match="holds weights under student, teacher"):
        load(runner, {name: {"a.weight": torch.ones(1)} for name in ("student", "teacher")})
    with pytest.raises(ValueError, match="holds no weights: its entries are epoch"):
        load(runner, {"epoch": 3})
    assert get_priority(EMAHook.priority) < get_priority(CheckWeightsHook.priority)


def run_of(model, hooks=(), **cfg):
    return SimpleNamespace(model=model, cfg=cfg, hooks=list(hooks), logger=Mock())


def classifier(classes=1, backbone="conv"):
    parts = dict(backbone=torch.nn.ModuleDict({backbone: torch.nn.Conv2d(1, 1, 1)}))
    parts["head"] = torch.nn.ModuleDict(dict(fc=torch.nn.Linear(1, classes)))
    model = torch.nn.ModuleDict(parts)
    model.test_step = None  # which a model for augmented images asks for
    return model


def test_the_authors_classifiers_are_loaded_as_they_are():
    for head in ("head", "linear"):
        model = classifier(backbone="stage0")
        state = {"stage0.weight": torch.full((1, 1, 1, 1), 3.0), "stage0.bias": torch.ones(1)}
        state |= {f"{head}.weight": torch.full((1, 1), 5.0), f"{head}.bias": torch.ones(1)}
        for runner in (run_of(model), run_of(TTA(model))):
            CheckWeightsHook().after_load_checkpoint(runner, {"model": state})
            assert model.backbone.stage0.weight.item() == 3 and model.head.fc.weight.item() == 5


class TTA(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        raise NotImplementedError


def test_a_test_refuses_what_it_would_evaluate_at_random():
    hook, model = CheckWeightsHook(), classifier(classes=3)
    model["auxiliary_head"] = torch.nn.Linear(1, 1)
    state = {name: value for name, value in model.state_dict().items() if "auxiliary" not in name}
    hook.after_load_checkpoint(run_of(model), {"state_dict": dict(state)})
    hook.before_test(run_of(model))
    for change, message in (
        ({"head.fc.weight": torch.ones(4, 1)}, r"of another shape: head.fc.weight.*\[4, 1\].*\[3, 1\]"),
        ({"head.fc.weight": None}, "missing: head.fc.weight"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        hook.after_load_checkpoint(run_of(model), {"state_dict": changed})
        with pytest.raises(ValueError, match=message):
            hook.before_test(run_of(model))


def test_a_training_names_what_keeps_its_initial_values():
    hook, runner = CheckWeightsHook(), run_of(classifier(classes=3), load_from="x.pth")
    hook.after_load_checkpoint(runner, {"state_dict": classifier(classes=5).state_dict()})
    hook.before_train(runner)
    ((text,), _) = runner.logger.warning.call_args
    assert "load_from=x.pth" in text and "head.fc.weight" in text and "[5, 1]" in text and "backbone" not in text
    hook.before_test(runner)  # of what was trained since


def test_a_training_resumes_with_the_model_it_was_begun_with():
    for other, message in (
        (classifier(classes=5), r"another shape: head.fc.weight \[5, 1\] \(the model: \[3, 1\]\).*load_from"),
        (classifier(classes=3, backbone="stem"), r"missing: backbone.conv.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            CheckWeightsHook().after_load_checkpoint(
                run_of(classifier(classes=3), resume=True), {"state_dict": other.state_dict()}
            )


def test_averaged_weights_begin_with_those_of_any_names():
    model, source, hook = classifier(), classifier(), EMAHook()
    hook.before_run(run_of(model))
    state = {f"student.{name}": value for name, value in source.state_dict().items()}
    CheckWeightsHook().after_load_checkpoint(run_of(model, [hook]), {"state_dict": state})
    assert torch.equal(hook.ema_model.module.head.fc.weight, source.head.fc.weight)


@pytest.mark.slow
def test_an_evaluation_stops_instead_of_measuring_random_weights(trained, tmp_path):
    state = load_from_local(trained.checkpoint)["state_dict"]
    torch.save({"student": state, "teacher": state}, tmp_path / "x.pth")
    options = {**trained.options, "test_dataloader.dataset.indices": 8}
    with pytest.raises(ValueError, match="holds weights under student, teacher"):
        evaluate(CONFIG, tmp_path / "x.pth", str(tmp_path), cfg_options=options)
    evaluate(CONFIG, tmp_path / "x.pth", str(tmp_path), cfg_options={**options, "check_weights": False})
