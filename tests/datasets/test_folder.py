# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.datasets import digits, write_digits


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"digits already exists; choose another path.*--overwrite"):
        write_digits(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    write_digits(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val"]


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits.mmcv, "imwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())
