# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import stat
import subprocess
import sys

import pytest
import torch

from mmrepmlp.checkpoint import atomic_folder, atomic_write, load_from_local, save_checkpoint, save_hashed


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


def test_the_hash_is_of_the_file_and_does_not_depend_on_the_name(tmp_path):
    content = {"state_dict": {"weight": torch.arange(5.0)}}
    first = save_hashed(content, tmp_path / "one/deploy.pth")
    second = save_hashed(content, tmp_path / "two/other.pth")
    digest = hashlib.sha256(first.read_bytes()).hexdigest()[:8]
    assert (first.name, second.name) == (f"deploy-{digest}.pth", f"other-{digest}.pth")
    assert first.read_bytes() == second.read_bytes() and os.listdir(first.parent) == [first.name]


def test_leftovers_of_the_dead_go_and_files_in_use_stay(tmp_path):
    path = tmp_path / "checkpoint.pth"
    script = (
        "import os, signal, sys\n"
        "from mmrepmlp.checkpoint import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, path])
    assert len(os.listdir(tmp_path)) == 1 and not path.exists()
    with atomic_write(path) as outer:
        assert os.listdir(tmp_path) == [outer.name]
        with atomic_write(path) as inner:
            inner.write_bytes(b"inner")
        assert outer.exists() and path.read_bytes() == b"inner"
        outer.write_bytes(b"outer")
    assert os.listdir(tmp_path) == ["checkpoint.pth"] and path.read_bytes() == b"outer"


def test_folders_appear_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "network"
    with atomic_folder(folder) as temporary:
        (temporary / "graph").write_text("one")
        assert not folder.exists()
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "graph").write_text("two")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["network"] and (folder / "graph").read_text() == "one"
    with atomic_folder(folder) as temporary:
        (temporary / "other").write_text("three")
        assert os.listdir(folder) == ["graph"]
    assert os.listdir(tmp_path) == ["network"] and os.listdir(folder) == ["other"]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path):
    killed = tmp_path / ".network.abc.tmp"
    killed.mkdir()
    (killed / "half").touch()
    with atomic_folder(tmp_path / "network") as first:
        assert not killed.exists()
        with atomic_folder(tmp_path / "network"):
            assert first.exists()
    assert os.listdir(tmp_path) == ["network"]
