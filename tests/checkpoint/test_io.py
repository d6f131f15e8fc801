# SPDX-License-Identifier: Apache-2.0
import os
import stat
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

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


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which this machine serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses_are_downloaded_once_and_run_no_code(served, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder, address = served
    weights, proof = {"state_dict": {"weight": torch.arange(3.0)}}, tmp_path / "proof"
    torch.save(weights, folder / "good.pth")
    torch.save({**weights, "config": CreatesAFile(proof)}, folder / "bad.pth")
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(f"{address}/good.pth", map_location="cpu")
        assert torch.equal(loaded["state_dict"]["weight"], torch.arange(3.0))
        (folder / "good.pth").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="refused"):
        CheckpointLoader.load_checkpoint(f"{address}/bad.pth")
    assert not proof.exists()
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be downloaded: .*404.*give its path"):
        CheckpointLoader.load_checkpoint(f"{address}/none.pth")
