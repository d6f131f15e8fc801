# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import evaluate
from tests.fixtures import CONFIG


@pytest.mark.slow
def test_a_model_moved_to_another_tile_size_keeps_most_of_its_accuracy(learned, tmp_path):
    accuracy = {}
    for side in (64, 96, 48):
        sizes = {"model.backbone.img_size": side, "test_dataloader.dataset.pipeline.1.scale": side}
        metrics = evaluate(CONFIG, learned.checkpoint, str(tmp_path), cfg_options={**learned.options, **sizes})
        accuracy[side] = metrics["accuracy/top1"]
    assert accuracy[64] > 95 and min(accuracy.values()) > 0.5 * accuracy[64]  # chance is a tenth
