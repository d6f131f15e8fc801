# SPDX-License-Identifier: Apache-2.0
"""What each run has to itself."""

import pytest

from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.runner import build_runner
from tests.fixtures import CONFIG


@pytest.mark.parametrize("naming", [{}, {"experiment_name": "mine"}, {"visualizer": None}], ids=str)
@pytest.mark.parametrize("from_file", [True, False])
def test_runs_that_begin_in_one_second_share_nothing(options, tmp_path, naming, from_file):
    cfg = load_config(CONFIG, {**options, **naming}, str(tmp_path))
    if not from_file:
        cfg = type(cfg)(cfg.to_dict())
    first, second = build_runner(cfg.copy()), build_runner(cfg.copy())
    assert first.log_dir != second.log_dir and first.experiment_name != second.experiment_name
    for name in ("logger", "message_hub", "visualizer"):
        assert getattr(first, name) is not getattr(second, name), name
