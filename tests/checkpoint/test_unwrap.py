# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.registry import MODELS

from mmrepmlp.checkpoint import CheckpointError, fit_names, load_from_local, save_checkpoint, unwrap
from mmrepmlp.engine import CheckWeightsHook
from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.model import build_model
from tests.conftest import TINY

CLASSIFIER = dict(
    type="mmpretrain.ImageClassifier",
    backbone=dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64),
    neck=dict(type="mmpretrain.GlobalAveragePooling"),
    head=dict(type="mmpretrain.LinearClsHead", num_classes=5, in_channels=64),
)
BOOKKEEPING = dict(
    epoch=3,
    arch="RepMLPNet",
    args=dict(lr=0.1),
    best=torch.tensor(0.5),
    optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[{"params": [0]}]),
    optim_by_name={"patch_embed.projection.weight": torch.ones(1)},
    scaler=dict(scale=torch.tensor(2.0)),
    rng=dict(cpu=torch.zeros(3, dtype=torch.uint8)),
)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return MODELS.build(CLASSIFIER).state_dict()


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


LAYOUTS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, **BOOKKEEPING},
    "model": lambda s: {"model": s, "model_ema": {k: v + 1 for k, v in s.items()}, **BOOKKEEPING},
    "params": lambda s: {"params": s, "params_ema": {k: v + 1 for k, v in s.items()}},
    "only averages": lambda s: {"model_ema": s, **BOOKKEEPING},
    "params_ema": lambda s: {"params_ema": s, **BOOKKEEPING},
    "nested ema": lambda s: {"ema": {"decay": 0.9, "state_dict": s}, **BOOKKEEPING},
    "teacher": lambda s: {"teacher": prefixed(s, "module."), **BOOKKEEPING},
    "unheard-of": lambda s: {"weights_of_monday": s, **BOOKKEEPING},
    "Lightning": lambda s: {"state_dict": {**prefixed(s, "model."), "loss_fn.weight": torch.ones(5)}, **BOOKKEEPING},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled and distributed": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "averaged_model.module.")},
    "averaged by Lightning": lambda s: {"state_dict": prefixed(s, "ema_model.module."), **BOOKKEEPING},
    "Lightning in DeepSpeed": lambda s: {"module": prefixed(s, "_forward_module.model."), **BOOKKEEPING},
    "compiled inside": lambda s: {k.replace("backbone.", "backbone._orig_mod."): v for k, v in s.items()},
    "distributed inside": lambda s: {k.replace("backbone.", "backbone.module."): v for k, v in s.items()},
    "arrays": lambda s: {"model": {k: v.numpy() for k, v in s.items()}, "__author__": "detectron2"},
    "numbered": lambda s: {**s, 1: torch.ones(1)},
    "beside a loss": lambda s: {"net": s, "criterion": {"weight": torch.ones(5)}, "bank": {"a.0": torch.ones(1)}},
    "usual names without weights": lambda s: {"state_dict": None, "model": "RepMLPNet", "weights": s},
    "inside of a larger model": lambda s: {"state_dict": prefixed(s, "detector.encoder.")},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_found_by_their_content(name, state, tmp_path):
    save_checkpoint(LAYOUTS[name](state), tmp_path / "x.pth")
    backbone = RepMLPNet(TINY, img_size=64, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth")))
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[f"backbone.{key}"])
    if name == "inside of a larger model":
        return
    whole = MODELS.build(CLASSIFIER)
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth"))
    CheckWeightsHook().after_load_checkpoint(SimpleNamespace(model=whole, cfg={}, hooks=[]), loaded)  # as in each run
    whole.load_state_dict(loaded.get("state_dict", loaded))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, state[key])
    build_model(Config(dict(model=CLASSIFIER, default_scope="mmpretrain")), unwrap(load_from_local(tmp_path / "x.pth")))


def test_several_networks_in_one_state_dict(state, tmp_path):
    backbone = RepMLPNet(TINY, img_size=64)
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    other = {key: value + 1 for key, value in own.items()}
    for prefixes in (("encoder_q.", "encoder_k."), ("student.backbone.", "teacher.backbone.")):
        both = {**prefixed(own, prefixes[0]), **prefixed(other, prefixes[1])}
        with pytest.raises(ValueError, match=f"several RepMLPNets, under .*{prefixes[0]}.*prefix="):
            backbone.load_state_dict(both)
        save_checkpoint({"state_dict": prefixed(both, "module.")}, tmp_path / "x.pth")
        backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth"))
        backbone.init_cfg["prefix"] = f"module.{prefixes[0]}"
        backbone.init_weights()
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, own[key])
        backbone = RepMLPNet(TINY, img_size=64)
    backbone.load_state_dict({**prefixed(own, "backbone."), **prefixed(other, "b.")})
    assert torch.equal(backbone.state_dict()["final_norm.weight"], own["final_norm.weight"])


@pytest.mark.parametrize("value", [None, torch.ones(8).to_sparse(), torch.ones(()), 3.0])
def test_odd_values_are_no_errors_of_ours(state, value):
    name = "stages.0.0.norm1.weight"
    own = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    if isinstance(value, torch.Tensor) and value.is_sparse:
        RepMLPNet(TINY, img_size=64).load_state_dict({**own, name: unwrap({name: value})[name]})
        return
    with pytest.raises(RuntimeError, match=name):
        RepMLPNet(TINY, img_size=64).load_state_dict({**own, name: value})
    with pytest.raises(ValueError, match=name):
        build_model(Config(dict(model=CLASSIFIER, default_scope="mmpretrain")), {**state, f"backbone.{name}": value})


def test_several_candidates_are_listed(state, tmp_path):
    content = {"student": state, "teacher": state, **BOOKKEEPING}
    with pytest.raises(ValueError, match="holds weights under student, teacher, and these names do not tell"):
        unwrap(content)
    assert unwrap(content, ema=True).keys() == state.keys()
    save_checkpoint(content, tmp_path / "x.pth")
    assert CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth")).keys() == content.keys()
    backbone = RepMLPNet(TINY, img_size=64, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth")))
    with pytest.raises(ValueError, match="student, teacher"):
        backbone.init_weights()


def test_no_weights_list_what_there_is():
    with pytest.raises(ValueError, match="holds no weights: its entries are epoch, args"):
        unwrap({"epoch": 3, "args": {"lr": 1}})
    with pytest.raises(ValueError, match=r"no averaged weights: its entries are model.*\(--ema\)"):
        unwrap({"model": {"weight": torch.ones(1)}}, ema=True)


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), 3, "text", None, {1, 2}, (1, 2)])
def test_files_of_anything_else_say_what_they_hold(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    for load in (load_from_local, CheckpointLoader.load_checkpoint):
        with pytest.raises(CheckpointError, match=f"holds a {type(content).__name__}: expected a dict"):
            load(str(tmp_path / "x.pth"))
    with pytest.raises(ValueError, match=f"is a {type(content).__name__}: expected a dict"):
        unwrap(content)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {1: 2},
        {"meta": 3},
        {"state_dict": 5},
        {"state_dict": [{"a.b": torch.ones(1)}]},
        {"state_dict": {}},
        {"model": [1]},
        {"a": {"b": "c"}},
    ],
)
def test_odd_contents_end_in_a_sentence(content, tmp_path):
    """Of unwrap, or of the model that does not find its tensors."""
    torch.save(content, tmp_path / "x.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth"))
    assert isinstance(loaded.get("state_dict", loaded), dict)
    cfg = Config(dict(model=CLASSIFIER, default_scope="mmpretrain"))
    with pytest.raises(ValueError, match=r"holds no weights|does not fit"):
        build_model(cfg, unwrap(load_from_local(tmp_path / "x.pth")))


@pytest.mark.parametrize("outer", ["module.", "model.", "module.model."])
def test_a_prefix_that_is_asked_for_is_found(state, outer, tmp_path):
    """As MMEngine finds it, whatever is stripped where no prefix is given."""
    torch.save({"state_dict": prefixed(state, outer)}, tmp_path / "x.pth")
    for prefix in (f"{outer}backbone.", f"{outer}backbone", None):
        init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth"))
        init_cfg |= {} if prefix is None else dict(prefix=prefix)
        backbone = RepMLPNet(TINY, img_size=64, init_cfg=init_cfg)
        backbone.init_weights()
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, state[f"backbone.{key}"])


class Wrapper(BaseModel):
    """A user's model with a part that is named like a wrapper."""

    def __init__(self):
        super().__init__()
        self.model = MODELS.build(CLASSIFIER)

    def forward(self, *_):
        raise NotImplementedError


def test_what_mmengine_wrote_goes_back_into_the_model_it_came_from(tmp_path):
    source, target = Wrapper(), Wrapper()
    torch.save({"state_dict": source.state_dict(), "meta": dict(mmengine_version="0.10.7")}, tmp_path / "x.pth")
    load_checkpoint(target, str(tmp_path / "x.pth"), strict=True)
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    assert unwrap(load_from_local(tmp_path / "x.pth")).keys() == source.state_dict().keys()
    backbone = RepMLPNet(TINY, img_size=64, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "x.pth")))
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[f"model.backbone.{key}"])


def test_a_model_of_a_single_parameter():
    assert unwrap({"state_dict": {"scale": torch.ones(1)}, "meta": {}}) == {"scale": torch.ones(1)}


def test_names_that_belong_to_the_model_stay():
    state = {"model.conv1.weight": torch.ones(1), "model.fc.bias": torch.ones(1)}
    for prefix in ("", "module.", "student.", "architecture.module."):
        assert fit_names(prefixed(state, prefix) | {"n_averaged": torch.ones(1)}, state).keys() >= state.keys()
    assert fit_names(state, ["conv1.weight", "fc.bias"]).keys() == {"conv1.weight", "fc.bias"}
    assert fit_names(state, ["another.weight"]) is state


def test_a_part_named_like_a_wrapper_keeps_its_name_without_meta():
    """As MMEngine loads it, while names of the same beginning are removed for a model that does not have them."""
    source, target = Wrapper(), Wrapper()
    runner = SimpleNamespace(model=target, cfg={}, hooks=[])
    CheckWeightsHook().after_load_checkpoint(runner, {"state_dict": source.state_dict()})
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])


@pytest.mark.parametrize("prefix", ["student.", "teacher.", "architecture.", "model.student.module."])
def test_what_a_wrapper_put_in_front_is_removed_beside_meta(state, prefix):
    other = {"connectors.0.weight": torch.ones(1), "teacher_2.backbone.conv1.weight": torch.ones(1)}
    content = {"state_dict": {**prefixed(state, prefix), **other}, "meta": dict(epoch=3)}
    model = build_model(Config(dict(model=CLASSIFIER, default_scope="mmpretrain")), unwrap(content))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_model_that_is_there_twice_is_named(state):
    both = {**prefixed(state, "student."), **prefixed(state, "teacher.")}
    with pytest.raises(ValueError, match="several times, under 'student.', 'teacher.'"):
        build_model(Config(dict(model=CLASSIFIER, default_scope="mmpretrain")), both)
    layers = {"layer1.0.conv1.weight": torch.ones(1), "layer1.1.conv1.weight": torch.ones(1)}
    assert fit_names(layers, ["backbone.conv1.weight", "head.fc.weight"]).keys() == prefixed(layers, "backbone.").keys()
    smaller = {name: value for name, value in both.items() if "student.head" not in name}
    build_model(Config(dict(model=CLASSIFIER, default_scope="mmpretrain")), smaller)


def test_the_versions_of_modules_are_known_behind_a_prefix():
    model = torch.nn.ModuleDict(dict(student=torch.nn.Sequential(torch.nn.BatchNorm2d(2))))
    fitted = fit_names(unwrap({"state_dict": model.state_dict()}), ["0.weight"])
    assert fitted._metadata == {"": {"version": 1}, "0": {"version": 2}}
