# SPDX-License-Identifier: Apache-2.0
from mmrepmlp.apis.config import load_config
from mmrepmlp.apis.deployment.calibration import calibration_batches
from tests.fixtures import CONFIG


def test_calibration_sees_training_images_as_a_test_does(options, tmp_path):
    cfg = load_config(CONFIG, options, str(tmp_path))
    batches = calibration_batches(cfg, images=40)
    assert [tuple(batch.shape) for batch in batches] == [(16, 3, 64, 64)] * 3
    assert all(batch.abs().max() <= 1 for batch in batches)
    again = calibration_batches(cfg, images=40)
    assert all((a == b).all() for a, b in zip(batches, again))
