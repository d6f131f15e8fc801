# SPDX-License-Identifier: Apache-2.0
"""Classification where nothing compiled of mmcv can be imported, as with mmcv-lite."""

import json
import subprocess
import sys

import pytest

from tests.fixtures import CONFIG

SCRIPT = """
import json, sys
sys.modules["mmcv._ext"] = None  # as if it were not there
config, options, folder = json.loads(sys.argv[1])
from mmrepmlp.apis import evaluate, reparameterize_checkpoint, train
train(config, work_dir=folder, cfg_options=options)
checkpoint = f"{folder}/epoch_1.pth"
before = evaluate(config, checkpoint, work_dir=folder, cfg_options=options)
report = reparameterize_checkpoint(config, checkpoint, f"{folder}/deploy.pth")
after = evaluate(report.config, work_dir=folder, cfg_options=options)
assert "mmcv.ops" not in sys.modules, "imported needlessly"
print("\\n" + json.dumps([before, after]))
"""


@pytest.mark.slow
def test_training_testing_and_conversion_take_nothing_compiled(options, tmp_path):
    few = {f"{split}_dataloader.dataset.indices": 64 for split in ("train", "val", "test")}
    arguments = json.dumps([CONFIG, {**options, **few, "train_cfg.max_epochs": 1}, str(tmp_path)])
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == after and before["accuracy/top1"] > 0
