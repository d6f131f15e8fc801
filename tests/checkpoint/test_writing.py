# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrepmlp.checkpoint import atomic_folder, atomic_write, check_folder, load_from_local, save_checkpoint, save_hashed


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


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path, monkeypatch):
    """Between the two renames, whatever the next call does; a rename that fails puts it back at once."""
    folder, rename = tmp_path / "network", Path.rename
    with atomic_folder(folder) as temporary:
        (temporary / "graph").write_text("one")

    def fail(path: Path, target: Path) -> None:
        if path.suffix == ".tmp":
            raise OSError("disk")
        rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk"), atomic_folder(folder) as temporary:
        (temporary / "graph").write_text("two")
    assert os.listdir(tmp_path) == ["network"] and (folder / "graph").read_text() == "one"
    monkeypatch.setattr(Path, "rename", lambda path, target: fail(path, target) or os._exit(9))
    process = os.fork()
    if not process:
        with atomic_folder(folder) as temporary:
            (temporary / "graph").write_text("two")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9 and not folder.exists()
    monkeypatch.undo()
    with pytest.raises(RuntimeError), atomic_folder(folder):
        assert (folder / "graph").read_text() == "one"
        raise RuntimeError
    assert os.listdir(tmp_path) == ["network"]
    with atomic_folder(folder) as temporary:
        (temporary / "graph").write_text("three")
    assert os.listdir(tmp_path) == ["network"] and (folder / "graph").read_text() == "three"


def test_paths_that_cannot_be_written_are_named_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"file/a/x.pth cannot be written: \S+/file is a file. Choose another path"):
        save_checkpoint({}, tmp_path / "file/a/x.pth")
    with pytest.raises(IsADirectoryError, match="folder cannot be written: It is a folder"):
        save_checkpoint({}, tmp_path / "folder")
    with pytest.raises(NotADirectoryError, match="file cannot be written: It is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(OSError, match="proc/nothing/a cannot be written: No such file or directory"):
        save_checkpoint({}, "/proc/nothing/a")
    check_folder(tmp_path / "new/one")
    assert not os.listdir(tmp_path / "new/one")
