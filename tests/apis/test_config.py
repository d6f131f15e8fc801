# SPDX-License-Identifier: Apache-2.0
from mmrepmlp.apis.config import load_config
from tests.fixtures import CONFIG


def test_work_dir_is_named_after_the_config_unless_one_is_given():
    assert load_config(CONFIG).work_dir == "work_dirs/repmlpnet-mini_1xb64_digits-64px"
    assert load_config(CONFIG, {"work_dir": "here"}).work_dir == "here"
    assert load_config(CONFIG, {"work_dir": "here"}, work_dir="there").work_dir == "there"
