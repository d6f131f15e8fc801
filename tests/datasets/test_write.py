# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from mmrepmlp.datasets import write, write_dataset


def test_every_task_has_a_folder_where_the_configs_look(monkeypatch):
    configs = [path.read_text() for path in (Path(__file__).parents[2] / "configs").rglob("*digits*.py")]
    calls = []
    for task, (_, folder) in write.WRITERS.items():
        monkeypatch.setitem(write.WRITERS, task, (lambda *arguments: calls.append(arguments), folder))
        assert write_dataset(task)[0] == Path(folder) and write_dataset(task, "here", True)[0] == Path("here")
        assert calls[-2:] == [(Path(folder), False), (Path("here"), True)]
        assert any(f'"{folder}"' in config for config in configs)


def test_another_task_is_refused():
    with pytest.raises(ValueError, match="task='pose': expected one of cls, sheets, seg, det"):
        write_dataset("pose")
