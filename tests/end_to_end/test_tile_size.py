# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import evaluate, train
from tests.fixtures import CONFIG


@pytest.mark.slow
def test_a_model_moved_to_another_tile_size_keeps_most_of_its_accuracy(options, tmp_path):
    whole = {**options, "train_cfg.max_epochs": 10, "train_cfg.val_interval": 10}
    train(CONFIG, str(tmp_path / "run"), cfg_options=whole)
    accuracy = {}
    for side in (64, 96, 48):
        sizes = {"model.backbone.img_size": side, "test_dataloader.dataset.pipeline.1.scale": side}
        metrics = evaluate(CONFIG, tmp_path / "run/epoch_10.pth", str(tmp_path), cfg_options={**options, **sizes})
        accuracy[side] = metrics["accuracy/top1"]
    assert accuracy[64] > 95 and min(accuracy.values()) > 0.5 * accuracy[64]  # chance is a tenth
