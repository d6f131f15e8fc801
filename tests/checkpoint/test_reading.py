# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmrepmlp.checkpoint import CheckpointError, fit_names, load_from_local, save_checkpoint, unwrap
from tests.conftest import DATA
from tests.helpers import CreatesAFile


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, zipped):
    path, proof = tmp_path / "checkpoint.pth", tmp_path / "proof"
    content = {"state_dict": {"weight": torch.zeros(1)}, "config": CreatesAFile(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for load in (load_from_local, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match=r"posix\.system.*refused"):
            load(str(path))
    assert not proof.exists()
    load_from_local(path, allow_unsafe=True)
    assert proof.exists()


def test_archives_of_the_first_torch_are_not_read(tmp_path):
    path, proof = tmp_path / "checkpoint.pth", tmp_path / "proof"
    (tmp_path / "member").write_bytes(pickle.dumps(CreatesAFile(proof), 2))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(tmp_path / "member", name)
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pth has .*tar, which cannot be read safely.*--allow-unsafe"
    ):
        load_from_local(path)
    assert not proof.exists()


def test_objects_of_a_package_that_is_not_there(tmp_path):
    content = b"\x80\x02cyacs.config\nCfgNode\n)\x81."  # an empty yacs config
    archive = tmp_path / "config.pth"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3")
    with pytest.raises(CheckpointError, match=r"yacs\.config.*refused.*--allow-unsafe: that runs the code"):
        load_from_local(archive)
    with pytest.raises(CheckpointError, match="package that is not installed: .*yacs"):
        load_from_local(archive, allow_unsafe=True)


def test_the_stand_in_for_getattr_gives_out_history_statistics_alone(tmp_path):
    torch.save({"method": np.ndarray.tofile}, tmp_path / "checkpoint.pth")
    with pytest.raises(
        CheckpointError,
        match=r"getattr\(<class 'numpy\.ndarray'>, 'tofile'\)\. Loading it may run code, so it is refused",
    ):
        load_from_local(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 300_000])
def test_truncated_checkpoints(tmp_path, size):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes((DATA / "tiny_official_train.pth").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"{path} .*(empty|damaged).*again"):
        load_from_local(path)


def test_something_else_than_a_checkpoint(tmp_path):
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        load_from_local(tmp_path / "page.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pth"):
        load_from_local(tmp_path / "absent.pth")


def test_devices(tmp_path):
    paths = [tmp_path / "x.pth", tmp_path / "x.safetensors"]
    for path in paths:
        save_checkpoint({"state_dict": {"weight": torch.ones(1)}}, path)
        for place in (None, "cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, _: storage):
            assert load_from_local(path, place)["state_dict"]["weight"].device.type == "cpu"
        for place in ("gpu", "cuda:99"):
            with pytest.raises(CheckpointError, match=f"{path} cannot be loaded to map_location='{place}'.*Pass 'cpu'"):
                load_from_local(path, place)
    with zipfile.ZipFile(paths[0]) as source, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as target:
        for name in source.namelist():  # as if it had been saved from a GPU
            target.writestr(name, source.read(name).replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:0"))
    if not torch.cuda.is_available():
        assert load_from_local(tmp_path / "gpu.pth", None)["state_dict"]["weight"] == 1


def test_other_protocols_of_pickle_are_no_damage(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"x\.pth was saved with a pickle_protocol other than 2.*--allow-unsafe"):
        load_from_local(tmp_path / "x.pth")
    assert load_from_local(tmp_path / "x.pth", allow_unsafe=True) == {"state_dict": {}}


def test_what_mmengine_stores_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = dict(history=history, loss=np.float64(0.5), seen=np.int64(3), mask=np.array([True]), when=np.arange(3.0))
    save_checkpoint(content, tmp_path / "checkpoint.pth")
    loaded = load_from_local(tmp_path / "checkpoint.pth")
    assert loaded["history"].mean() == 1.5 and loaded["history"].statistics("max") == 2
    assert loaded["loss"] == 0.5 and loaded["seen"] == 3 and loaded["mask"].tolist() == [True]


def test_safetensors_are_read_by_mmengine_too(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = {
        "weight": torch.arange(6.0).view(2, 3),
        "steps": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    save_checkpoint({"state_dict": state, "meta": {"classes": ["a", "b"], "epoch": 3}}, path)
    for load in (load_from_local, CheckpointLoader.load_checkpoint):
        loaded = load(str(path))
        assert loaded["meta"] == {"classes": ["a", "b"], "epoch": 3}
        assert loaded["state_dict"].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(loaded["state_dict"][name], value, rtol=0, atol=0)
    save_file(state, path, {"meta": "text"})  # by somebody else
    assert load_from_local(path)["meta"] == {} and load_from_local(path)["state_dict"].keys() == state.keys()
    for size in (4, 100):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            load_from_local(path)


def test_safetensors_hold_no_optimizer(tmp_path):
    with pytest.raises(ValueError, match="not optimizer.*pth"):
        save_checkpoint({"state_dict": {}, "optimizer": {}}, tmp_path / "checkpoint.safetensors")
    assert not os.listdir(tmp_path)


class Wrapped(torch.nn.Module):
    """What is pickled whole."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.backbone(x)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        lambda net: net,
        lambda net: {"model": net, "epoch": 3},
        lambda net: {"state_dict": net},
        lambda net: {"model": net, "ema": {"module": net}},
        lambda net: torch.nn.DataParallel(net),
        torch.jit.script,
    ],
    ids=["bare", "model", "state_dict", "beside ema", "DataParallel", "TorchScript"],
)
def test_of_a_module_pickled_whole_the_weights_are_taken_where_code_may_run(layout, ema, tmp_path):
    net = Wrapped()
    content = layout(net)
    if isinstance(content, torch.jit.ScriptModule):
        content.save(tmp_path / "x.pth")
    else:
        torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="TorchScript program|holds more than tensors"):
        load_from_local(tmp_path / "x.pth")
    read = load_from_local(tmp_path / "x.pth", allow_unsafe=True)
    state = fit_names(unwrap(read, ema and "ema" in read), net.state_dict())
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
