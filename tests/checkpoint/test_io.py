# SPDX-License-Identifier: Apache-2.0
import os
import stat

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmrepmlp.checkpoint import CheckpointError, atomic_write, load_from_local, save_checkpoint
from tests.conftest import DATA


class CreatesAFile:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, zipped):
    path, proof = tmp_path / "checkpoint.pth", tmp_path / "proof"
    content = {"state_dict": {"weight": torch.zeros(1)}, "config": CreatesAFile(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for load in (load_from_local, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match=r"posix\.system.*refused"):
            load(str(path))
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()


def test_the_stand_in_for_getattr_gives_out_history_statistics_alone(tmp_path):
    torch.save({"method": np.ndarray.tofile}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"getattr\(<class 'numpy.ndarray'>, 'tofile'\) is refused"):
        load_from_local(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 300_000])
def test_truncated_checkpoints(tmp_path, size):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes((DATA / "tiny_official_train.pth").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"{path} .*(empty|damaged).*again"):
        load_from_local(path)


def test_something_else_than_a_checkpoint(tmp_path):
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    with pytest.raises(CheckpointError, match="no checkpoint of torch.save"):
        load_from_local(tmp_path / "page.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pth"):
        load_from_local(tmp_path / "absent.pth")


def test_what_mmengine_stores_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = dict(history=history, loss=np.float64(0.5), seen=np.int64(3), mask=np.array([True]), when=np.arange(3.0))
    save_checkpoint(content, tmp_path / "checkpoint.pth")
    loaded = load_from_local(tmp_path / "checkpoint.pth")
    assert loaded["history"].mean() == 1.5 and loaded["history"].statistics("max") == 2
    assert loaded["loss"] == 0.5 and loaded["seen"] == 3 and loaded["mask"].tolist() == [True]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"a": 1}, path)
    with pytest.raises(OSError, match="disk"), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == ["checkpoint.pth"] and load_from_local(path) == {"a": 1}
    save_checkpoint({"a": 2}, path)
    assert os.listdir(tmp_path) == ["checkpoint.pth"] and load_from_local(path) == {"a": 2}
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
