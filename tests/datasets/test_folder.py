# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.datasets import digits, write_digits
from mmrepmlp.datasets.write import WRITERS


@pytest.mark.parametrize("write", [write for write, _ in WRITERS.values()])
def test_an_existing_folder_is_kept(write, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists; choose another path.*--overwrite"):
        write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits.mmcv, "imwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())
