# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis.config import load_config, read_config
from tests.fixtures import CONFIG, ROOT


def test_work_dir_is_named_after_the_config_unless_one_is_given():
    assert load_config(CONFIG).work_dir == "work_dirs/repmlpnet-mini_1xb64_digits-64px"
    assert load_config(CONFIG, {"work_dir": "here"}).work_dir == "here"
    assert load_config(CONFIG, {"work_dir": "here"}, work_dir="there").work_dir == "there"


def test_settings_are_merged_before_anything_is_asked_of_the_config():
    cfg = load_config(CONFIG, {"model.head.num_classes": 7}, launcher="pytorch")
    assert cfg.model.head.num_classes == 7 and cfg.launcher == "pytorch"
    part = ROOT / "configs/_base_/datasets/digits.py"
    with pytest.raises(ValueError, match="digits.py has no model. Name a whole config"):
        load_config(part)
    assert load_config(part, {"model.type": "ImageClassifier"}).model.type == "ImageClassifier"


def test_configs_of_packages_are_read_and_others_named():
    assert read_config("mmrepmlp::repmlpnet/repmlpnet-t224_8xb32_in1k.py").model.backbone.arch == "T"
    with pytest.raises(ValueError, match="nobody::folder/none.py names no config of an installed package"):
        read_config("nobody::folder/none.py")
    with pytest.raises(FileNotFoundError, match="none.py"):
        read_config("mmrepmlp::repmlpnet/none.py")
