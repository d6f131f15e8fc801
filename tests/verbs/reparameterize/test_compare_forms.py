# SPDX-License-Identifier: Apache-2.0
import mmengine
import pytest
import torch

from mmrepmlp.apis import compare_forms, evaluate, reparameterize_checkpoint
from tests.fixtures import CONFIG
from tests.helpers import render

pytestmark = pytest.mark.slow


def test_table_of_both_forms(trained, tmp_path):
    report = reparameterize_checkpoint(CONFIG, trained.checkpoint, tmp_path / "deploy.pth")
    forms = [(CONFIG, trained.checkpoint), (report.config, report.checkpoint)]
    outs = [str(tmp_path / f"{i}.pkl") for i in range(2)]
    for (config, checkpoint), out in zip(forms, outs):
        metrics = evaluate(config, checkpoint, str(tmp_path), out=out, cfg_options=trained.options)
    configs, checkpoints = zip(*forms)
    comparison = compare_forms(configs, checkpoints, outs, repeats=2)
    agreement = comparison.agreement
    assert agreement.same == agreement.total == 360 and comparison.equal
    assert agreement.metrics == {"top-1 accuracy": pytest.approx((metrics["accuracy/top1"],) * 2, rel=1e-6)}
    assert "360 of 360" in render(comparison.table())

    predictions = mmengine.load(outs[1])
    predictions[7]["pred_score"] = torch.roll(predictions[7]["pred_score"], 1)
    mmengine.dump(predictions, outs[1])
    changed = compare_forms(configs, checkpoints, outs, repeats=1)
    assert changed.agreement.same == 359 and not changed.equal
    mmengine.dump(predictions[::-1], outs[1])
    with pytest.raises(ValueError, match="different images"):
        compare_forms(configs, checkpoints, outs, repeats=1)
