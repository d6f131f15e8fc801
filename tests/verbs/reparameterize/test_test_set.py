# SPDX-License-Identifier: Apache-2.0
"""Both forms on a test set: the share of equal predictions, and what random images do not reach."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmrepmlp.apis import reparameterize_checkpoint
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.reparameterize import reparameterize as module
from mmrepmlp.verbs.reparameterize.reparameterize import ConversionError
from mmrepmlp.verbs.reparameterize.test_set import Agreement


def share(before, after):
    agreement = Agreement()
    agreement.count(before, after)
    return agreement.share


def test_share_of_equal_predictions():
    before = [{"gt_label": torch.ones(9), "seg_logits": torch.ones(9), "scores": torch.tensor([1.0, 2.0])}]
    after = copy.deepcopy(before)
    assert share(before, after) == 1 and share([], []) == 0 and share(before, []) == 0
    after[0].update(gt_label=torch.zeros(9), seg_logits=torch.zeros(9), scores=torch.tensor([1.0, 2.1]))
    assert share(before, after) == 0.5
    after[0]["scores"] = torch.tensor(1.0)
    assert share(before, after) == 0


def test_boxes_are_compared_in_their_order():
    before = InstanceData(bboxes=torch.arange(12.0).view(3, 4), labels=torch.tensor([1, 2, 3]))
    fewer = before[:2]
    assert share([before], [fewer]) == share([fewer], [before]) == pytest.approx(10 / 15)
    other = InstanceData(bboxes=before.bboxes + 1e-7, labels=torch.tensor([1, 2, 4]))
    assert share([before], [other]) == 14 / 15


FEW = {"test_dataloader.dataset.indices": 20}


def skip_random_images(monkeypatch):
    monkeypatch.setattr(module.Verification, "run_on_random_images", lambda self: None)


@pytest.mark.slow
def test_a_fault_is_seen_on_the_test_set_as_well(trained, config, tmp_path, monkeypatch):
    def bend(model):
        model.backbone.switch_to_deploy()
        model.backbone.final_norm.bias.data += 1e-6
        return model

    skip_random_images(monkeypatch)
    monkeypatch.setattr(module, "switch_to_deploy", bend)
    with pytest.raises(ConversionError, match=r"The deploy form differs: backbone\.0 in float64"):
        reparameterize_checkpoint(
            config, trained.checkpoint, tmp_path / "deploy.pth", verify_on="test", cfg_options=FEW
        )


@pytest.mark.slow
def test_what_the_test_set_does_not_reach_either_is_refused(trained, config, tmp_path, monkeypatch):
    skip_random_images(monkeypatch)
    monkeypatch.setattr(module.Verification, "compare", lambda *arguments: None)
    message = "on random images and the test set .*backbone: no forward pass reached it.*Nothing was written.$"
    with pytest.raises(ConversionError, match=message):
        reparameterize_checkpoint(
            config, trained.checkpoint, tmp_path / "deploy.pth", verify_on="test", cfg_options=FEW
        )


@pytest.mark.slow
def test_settings_of_the_test_set_count(trained, config, tmp_path):
    report = reparameterize_checkpoint(
        config, trained.checkpoint, tmp_path / "deploy.pth", verify_on="test", cfg_options=FEW
    )
    assert Config.fromfile(report.config).test_dataloader.dataset.indices == 20


@pytest.mark.slow
def test_another_loop_says_so(trained, config, tmp_path):
    options = FEW | {"test_cfg": dict(type="ValLoop", _delete_=True)}
    with pytest.raises(MMRepMLPError, match="test_cfg.type=ValLoop: --verify-on test needs MMEngine's TestLoop"):
        reparameterize_checkpoint(
            config, trained.checkpoint, tmp_path / "deploy.pth", verify_on="test", cfg_options=options
        )


@pytest.mark.slow
def test_a_test_set_without_a_number_to_compare_is_no_verification(trained, config, tmp_path):
    options = FEW | {"test_evaluator": dict(_delete_=True, type="ConfusionMatrix")}
    with pytest.raises(MMRepMLPError, match="yields no metric that is a number"):
        reparameterize_checkpoint(
            config, trained.checkpoint, tmp_path / "deploy.pth", verify_on="test", cfg_options=options
        )
    assert not list(tmp_path.glob("deploy*"))
