# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, checkpoint

from mmrepmlp import mmengine_compat
from mmrepmlp.checkpoint import LOADERS, CheckpointError, load_from_local
from tests.helpers import CreatesAFile

# A name in each scheme, and MMEngine's own loader of it.
NAMES = {
    "https://example.org/some/weights.pth?version=1": checkpoint.load_from_http,
    "torchvision://resnet18": checkpoint.load_from_torchvision,
    "torchvision://resnet50.imagenet1k_v2": checkpoint.load_from_torchvision,
    "modelzoo://resnet18": checkpoint.load_from_torchvision,
    "open-mmlab://detectron2/resnet50_caffe": checkpoint.load_from_openmmlab,
    "openmmlab://resnet50_caffe": checkpoint.load_from_openmmlab,  # deprecated
    "open-mmlab://of-the-user": checkpoint.load_from_openmmlab,
    "open-mmlab://in-a-file": checkpoint.load_from_openmmlab,
    "mmcls://resnet18": checkpoint.load_from_mmcls,
    "s3://bucket/weights.pth": checkpoint.load_from_ceph,
    "cluster:s3://bucket/weights.pth": checkpoint.load_from_ceph,
    "petrel://bucket/weights.pth": checkpoint.load_from_ceph,
}
GOOD = {"state_dict": {"backbone.weight": torch.arange(3.0), "head.bias": torch.ones(1)}}


class Elsewhere:
    """All that is not on this machine: each address and each storage has the file ``source``.

    Attributes:
        asked: What was asked for, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.source, self.asked = folder / "source", []

    def download(self, url, path, *_, **__):
        self.asked.append(url)
        shutil.copy(self.source, path)

    def get_bytes(self, path):
        self.asked.append(path)
        return self.source.read_bytes()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Stand-ins for the network and the clients of the storages, and empty caches."""
    there = Elsewhere(tmp_path)
    client = SimpleNamespace(Client=lambda **_: SimpleNamespace(Get=there.get_bytes, contains=lambda _: True))
    monkeypatch.setattr(torch.hub, "download_url_to_file", there.download)
    monkeypatch.setitem(sys.modules, "petrel_client", SimpleNamespace(client=client))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "mmengine"))
    (tmp_path / "mmengine").mkdir()
    table = {"of-the-user": "https://example.org/mine.pth", "in-a-file": "file.pth"}
    (tmp_path / "mmengine/open_mmlab.json").write_text(json.dumps(table))
    (tmp_path / "mmengine/file.pth").symlink_to(there.source)
    return there


def test_no_scheme_is_left_to_mmengine():
    assert CheckpointLoader._schemes.keys() == LOADERS.keys()
    tried = {pattern for name in NAMES for pattern in LOADERS if CheckpointLoader._schemes[pattern] is loader_of(name)}
    assert tried == LOADERS.keys() - {""}  # which is of paths
    assert loader_of("pavi://models/weights") is loader_of("s3://bucket/weights.pth")


def loader_of(name: str) -> object:
    return CheckpointLoader._get_checkpoint_loader(name)


@pytest.mark.parametrize("name", NAMES)
def test_each_scheme_loads_what_mmengine_would(name, elsewhere, tmp_path, monkeypatch):
    torch.save(GOOD, elsewhere.source)
    expected = NAMES[name](name, map_location="cpu")
    asked, elsewhere.asked = elsewhere.asked, []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "another"))
    actual = CheckpointLoader.load_checkpoint(name, map_location="cpu")
    assert elsewhere.asked == asked and (asked or name == "open-mmlab://in-a-file")
    assert actual.keys() == expected.keys() == {"state_dict"}
    assert actual["state_dict"].keys() == expected["state_dict"].keys()
    for key, value in expected["state_dict"].items():
        assert torch.equal(actual["state_dict"][key], value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_no_scheme_runs_code_in_a_checkpoint(name, zipped, elsewhere, tmp_path):
    proof = tmp_path / "proof"
    content = {**GOOD, "meta": {"config": CreatesAFile(proof)}}
    torch.save(content, elsewhere.source, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"posix\.system.*refused") as raised:
        CheckpointLoader.load_checkpoint(name)
    if name.startswith(("s3://", "cluster:", "petrel://")):
        assert str(raised.value).startswith(name)  # not the temporary copy
    assert not proof.exists()
    load_from_local(elsewhere.source, allow_unsafe=True)
    assert proof.exists()


def test_configs_load_by_name_from_any_scheme(elsewhere):
    torch.save(GOOD, elsewhere.source)
    for name in ("mmcls://resnet18", "s3://bucket/weights.pth"):
        prefix = {} if name.startswith("mmcls") else dict(prefix="backbone")
        model = BaseModule(dict(type="Pretrained", checkpoint=name, **prefix))
        model.weight = torch.nn.Parameter(torch.zeros(3))
        model.init_weights()
        assert torch.equal(model.weight, torch.arange(3.0))


def test_names_that_are_not_in_the_tables(elsewhere):
    for name, similar in (
        ("torchvision://resnet51", "torchvision://resnet50"),
        ("open-mmlab://detectron2/resnet50_cafe", "open-mmlab://detectron2/resnet50_caffe"),
        ("mmcls://resnet19", "mmcls://resnet18"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name} is not in MMEngine's table.*Similar names: .*{similar}"):
            CheckpointLoader.load_checkpoint(name)
    with pytest.raises(CheckpointError, match=r"table of models\.$"):
        CheckpointLoader.load_checkpoint("mmcls://")
    assert not elsewhere.asked


def test_storages_that_cannot_be_reached(monkeypatch):
    monkeypatch.setitem(sys.modules, "petrel_client", None)
    with pytest.raises(ImportError, match="petrel_client"):
        CheckpointLoader.load_checkpoint("s3://bucket/weights.pth")
    with pytest.raises(CheckpointError, match="No file backend of MMEngine is registered for pavi://models/weights"):
        CheckpointLoader.load_checkpoint("pavi://models/weights")


def test_loaders_of_others_are_kept(monkeypatch):
    def theirs(filename, map_location):
        return {"state_dict": {"from": filename}}

    ceph = r"(\S+\:)?s3://"
    monkeypatch.setattr(CheckpointLoader, "_schemes", {**CheckpointLoader._schemes, ceph: theirs})
    CheckpointLoader.register_scheme("ftp://", theirs)
    mmengine_compat.install()
    for name in ("s3://bucket/x.pth", "ftp://host/x.pth"):
        assert CheckpointLoader.load_checkpoint(name) == {"state_dict": {"from": name}}
    monkeypatch.setitem(CheckpointLoader._schemes, ceph, checkpoint.load_from_ceph)
    mmengine_compat.install()
    assert CheckpointLoader._schemes[ceph] is LOADERS[ceph]


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
    monkeypatch.setenv("LOCAL_RANK", "1")  # left by a launcher; without a process group nobody else downloads
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
