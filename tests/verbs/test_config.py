# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.verbs.config import load_config, read_config
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


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.py", "model = dict(", "SyntaxError: .* line 1"),
        ("a.py", "\nmodel = nothing", r"NameError: name 'nothing' is not defined \(.*a.py, line 2\)"),
        ("a.py", "_base_ = 'nobody::a/b.py'", "AssertionError: .*nobody"),
        ("a.json", '{"model": ', "JSONDecodeError"),
        ("a.json", "[1]", "AttributeError: 'list'"),
        ("a.yaml", "model: [", "ParserError"),
        ("a.txt", "model", "OSError: Only py/yml/yaml/json"),
        ("a.py", "model = dict(layers=[])", "KeyError: 'Index 3 exceeds"),
    ],
)
def test_files_that_are_no_configs_are_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} cannot be read as a config: {message}"):
        read_config(tmp_path / name, {"model.layers.3": 1})


def test_a_model_that_is_not_a_dict_is_none(tmp_path):
    (tmp_path / "a.py").write_text("model = 3")
    with pytest.raises(ValueError, match="a.py has no model"):
        read_config(tmp_path / "a.py")
