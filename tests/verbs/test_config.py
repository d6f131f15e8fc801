# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config

from mmrepmlp.verbs.config import framework_of, load_config, read_config
from tests.fixtures import CONFIG, ROOT


def test_work_dir_is_named_after_the_config_unless_one_is_given():
    assert load_config(CONFIG).work_dir == "work_dirs/repmlpnet-mini_1xb64_digits-64px"
    assert load_config(CONFIG, {"work_dir": "here"}).work_dir == "here"
    assert load_config(CONFIG, {"work_dir": "here"}, work_dir="there").work_dir == "there"


def test_settings_are_merged_before_anything_is_asked_of_the_config():
    cfg = load_config(CONFIG, {"model.head.num_classes": 7}, launcher="pytorch")
    assert cfg.model.head.num_classes == 7 and cfg.launcher == "pytorch"
    part = ROOT / "configs/_base_/datasets/digits.py"
    with pytest.raises(ValueError, match="digits.py has no model. Pass a complete config"):
        load_config(part)
    assert load_config(part, {"model.type": "ImageClassifier"}).model.type == "ImageClassifier"


def test_configs_of_packages_are_read_and_others_named():
    assert read_config("mmrepmlp::repmlpnet/repmlpnet-t224_8xb32_in1k.py").model.backbone.arch == "T"
    with pytest.raises(ValueError, match="nobody::folder/none.py does not name a config of an installed package"):
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


PURE = """
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, default_collate
from mmcv.ops import nms
from mmdet.models import ResNet, RetinaNet
from mmdet.models.losses import L1Loss
from mmdet.models.task_modules import BboxOverlaps2D
from mmrepmlp.models import RepMLPNet
from torch.nn import BatchNorm2d

model = dict(type=RetinaNet, backbone=dict(type=RepMLPNet), norm_cfg=dict(type=BatchNorm2d), test_cfg=[dict(type=nms)])
model.update(parts=(dict(type=L1Loss), dict(type=BboxOverlaps2D), dict(type=ResNet)))
loader = dict(sampler=dict(type=DefaultSampler), collate_fn=dict(type=default_collate), kinds=[L1Loss, nms])
"""


def test_names_stand_for_classes_and_functions(tmp_path):
    """Each of them leads to the class, where the path that MMEngine writes would lead to a function, or to nothing."""
    (tmp_path / "a.py").write_text(PURE)
    cfg = read_config(tmp_path / "a.py")
    assert [part.type for part in cfg.model.parts] == ["mmdet.L1Loss", "mmdet.BboxOverlaps2D", "mmdet.ResNet"]
    assert (cfg.model.type, cfg.model.backbone.type) == ("mmdet.RetinaNet", "mmrepmlp.RepMLPNet")
    assert (cfg.model.test_cfg[0].type, cfg.model.norm_cfg.type) == ("nms", "BN")
    assert (cfg.loader.sampler.type, cfg.loader.collate_fn.type) == ("DefaultSampler", "default_collate")
    assert cfg.loader.kinds == ["mmdet.L1Loss", "nms"]
    assert "nms" not in cfg and framework_of(cfg) == "mmdet"
    assert Config.fromstring(cfg.pretty_text, ".py").to_dict() == cfg.to_dict()


def test_the_framework_is_that_of_the_scope_or_of_the_model():
    assert framework_of(Config(dict(default_scope="mmseg", model=dict(type="X")))) == "mmseg"
    assert framework_of(Config(dict(model=dict(type="mmpretrain.ImageClassifier")))) == "mmpretrain"
    assert framework_of(Config(dict(model=dict(type="nobody.X")))) is None


def test_a_file_name_in_load_from_is_looked_for_beside_the_config_as_well(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("model = dict()\nload_from = 'x.pth'")
    monkeypatch.chdir(tmp_path.parent)
    assert read_config(tmp_path / "a.py").load_from == "x.pth"
    (tmp_path / "x.pth").touch()
    assert read_config(tmp_path / "a.py").load_from == str(tmp_path / "x.pth")
    assert read_config(tmp_path / "a.py", {"load_from": "b/x.pth"}).load_from == "b/x.pth"
    monkeypatch.chdir(tmp_path)
    assert read_config("a.py").load_from == "x.pth"
