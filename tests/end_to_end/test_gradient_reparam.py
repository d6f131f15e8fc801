# SPDX-License-Identifier: Apache-2.0
"""Training in the deploy structure by a config: through an interruption, and on to the deploy form."""

import pytest
import torch

from mmrepmlp.apis import reparameterize_checkpoint, train
from mmrepmlp.checkpoint import load_from_local
from tests.fixtures import ROOT, dump_config

CONFIG = ROOT / "configs/experimental/repmlpnet-mini_repopt_1xb64_digits-64px.py"


@pytest.mark.slow
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(options, tmp_path):
    few = {f"{split}_dataloader.dataset.indices": 128 for split in ("train", "val", "test")}
    settings = {**options, **few, "randomness.deterministic": True}
    train(CONFIG, str(tmp_path / "whole"), cfg_options=settings)
    half = {**settings, "train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}
    train(CONFIG, str(tmp_path / "resumed"), cfg_options=half)
    train(CONFIG, str(tmp_path / "resumed"), resume="auto", cfg_options=settings)
    whole, resumed = (load_from_local(tmp_path / name / "epoch_2.pth") for name in ("whole", "resumed"))
    for name, expected in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], expected, rtol=0, atol=0, msg=name)
    states = whole["optimizer"]["state"], resumed["optimizer"]["state"]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for key, expected in state.items():
            torch.testing.assert_close(states[1][index][key], expected, rtol=0, atol=0, msg=f"{index} {key}")

    config = dump_config(CONFIG, settings, tmp_path / "config.py")
    report = reparameterize_checkpoint(
        config, tmp_path / "whole/epoch_2.pth", tmp_path / "deploy.pth", verify_on="test"
    )
    before, after = report.metrics["accuracy/top1"]
    assert before == after and report.parameters[1] < report.parameters[0]
