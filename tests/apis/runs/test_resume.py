# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import evaluate, train
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from tests.fixtures import CONFIG


@pytest.mark.slow
def test_resuming_goes_on_where_training_stopped(trained, tmp_path):
    work_dir = tmp_path / "resumed"
    options = {**trained.options, "train_cfg.max_epochs": 3}
    runner = train(CONFIG, work_dir=str(work_dir), resume=str(trained.checkpoint), cfg_options=options)
    assert runner.epoch == 3 and runner.iter == 3 * 23
    assert {path.name for path in work_dir.glob("epoch_*.pth")} == {"epoch_3.pth"}
    again = train(CONFIG, work_dir=str(work_dir), resume="auto", cfg_options={**options, "train_cfg.max_epochs": 4})
    assert again.epoch == 4 and {path.name for path in work_dir.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth"}


@pytest.mark.slow
def test_weights_alone_cannot_be_resumed_from(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_checkpoint({"state_dict": load_from_local(trained.checkpoint)["state_dict"]}, path)
    with pytest.raises(ValueError, match="weights.safetensors holds weights and no optimizer.*load_from"):
        train(CONFIG, str(tmp_path), resume=str(path), cfg_options=trained.options)
    metrics = [evaluate(CONFIG, c, str(tmp_path), cfg_options=trained.options) for c in (path, trained.checkpoint)]
    assert metrics[0] == metrics[1]


def test_resuming_passes_over_what_is_not_whole(settings, tmp_path):
    train(CONFIG, str(tmp_path), cfg_options={**settings, "train_cfg.max_epochs": 2})
    whole = (tmp_path / "epoch_2.pth").read_bytes()
    (tmp_path / "epoch_3.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "last_checkpoint").write_text("")
    runner = train(CONFIG, str(tmp_path), resume="auto", cfg_options={**settings, "train_cfg.max_epochs": 3})
    assert runner.epoch == 3 and runner.iter == 3 * 4
    assert load_from_local(tmp_path / "epoch_3.pth")["meta"]["iter"] == 12
