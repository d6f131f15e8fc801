# SPDX-License-Identifier: Apache-2.0
"""What each run has to itself."""

import pytest

from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.runner import CHECKS, build_runner
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


@pytest.mark.parametrize("switch", ["check_weights", "check_annotations"])
def test_every_run_is_checked_unless_its_config_says_otherwise(options, tmp_path, switch):
    """Training and test alike."""
    for wanted in (True, False):
        cfg = load_config(CONFIG, {**options, **({} if wanted else {switch: False})}, str(tmp_path))
        present = {type(hook).__name__ for hook in build_runner(cfg).hooks}
        assert {hook in present for hook in CHECKS[switch]} == {wanted}
