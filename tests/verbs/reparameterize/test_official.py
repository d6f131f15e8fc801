# SPDX-License-Identifier: Apache-2.0
"""Checkpoints under the authors' names, which their code loads with strict=True."""

import os

import mmpretrain.models  # noqa: F401  registers the classifier
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.model import build_model, build_untrained
from mmrepmlp.verbs.reparameterize.official import official_state
from tests.conftest import TINY
from tests.helpers import render

VARIANTS = [f"RepMLPNet-{name}" for name in ("T224", "T256", "B224", "B256", "D256", "L256")]
REPMLPNET = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64)
SMALL_VGG = dict(type="mmrepmlp.RepOptVGG", arch=dict(depths=[2, 1], channels=[4, 8]), strides=(2, 2, 2), out_indices=1)
FAMILY = {
    "light": dict(type="mmrepmlp.RepMLPResNet", block="light", base_channels=8),
    "bottleneck": dict(type="mmrepmlp.RepMLPResNet", block="bottleneck", base_channels=8),
    "RepOpt-VGG": SMALL_VGG,
    "hyper-search": dict(SMALL_VGG, form="hyper_search"),
}


def classifier(backbone, channels, classes=5):
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=channels)
    neck = dict(type="GlobalAveragePooling")
    model = dict(type="ImageClassifier", backbone=dict(backbone), neck=neck, head=head)
    return Config(dict(default_scope="mmpretrain", model=model))


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source.pth"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    classifier(REPMLPNET, 64).dump(path)
    return path


def to_official(config, source, out, **options):
    report = reparameterize_checkpoint(config, source, out, names="official", **options)
    content = load_from_local(report.checkpoint)
    return report, content["state_dict"] if out.suffix == ".safetensors" else content


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("ours", [False, True])
def test_there_and_back_changes_nothing(tiny_training_state, config, source, tmp_path, suffix, ours):
    save_checkpoint({"model": {f"module.{name}": value for name, value in tiny_training_state.items()}}, source)
    if ours:
        model = build_model(Config.fromfile(config), tiny_training_state)
        save_checkpoint({"meta": {}, "state_dict": model.state_dict()}, source)
    report, back = to_official(config, source, tmp_path / f"theirs{suffix}")
    assert back.keys() == tiny_training_state.keys()
    assert all(torch.equal(back[name], value) for name, value in tiny_training_state.items())
    assert report.checkpoint.name.startswith("theirs-") and report.tensors == len(back)
    assert "the authors'" in render(report.table())


def test_the_authors_classifier_is_converted_as_it_is(tiny_training_state, tiny_outputs, config, source, tmp_path):
    save_checkpoint(tiny_training_state, source)
    report = reparameterize_checkpoint(config, source, tmp_path / "deploy.pth")
    model = build_model(Config.fromfile(report.config), load_from_local(report.checkpoint)["state_dict"])
    with torch.no_grad():
        logits = model(tiny_outputs["native/input"])
    torch.testing.assert_close(logits, tiny_outputs["native/logits"], rtol=1e-5, atol=1e-5)


def test_what_the_authors_conversion_leaves_loads_in_deploy_form(tiny_state, tiny_outputs):
    model = build_model(classifier(dict(REPMLPNET, deploy=True), 64), tiny_state)
    with torch.no_grad():
        logits = model(tiny_outputs["native/input"])
    torch.testing.assert_close(logits, tiny_outputs["native/logits"], rtol=1e-5, atol=1e-5)
    del tiny_state["head.bias"]
    with pytest.raises(ValueError, match=r"missing: head\.fc\.bias"):
        build_model(classifier(dict(REPMLPNET, deploy=True), 64), tiny_state)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_those_of_the_released_variants(official_shapes, variant):
    with torch.device("meta"):
        backbone = dict(type="mmrepmlp.RepMLPNet", arch=variant[10], img_size=int(variant[11:]))
        channels = dict(T=512, B=768, D=640, L=768)[variant[10]]
        model = build_untrained(classifier(backbone, channels, classes=1000))
    state = official_state(model)
    assert {name: list(value.shape) for name, value in state.items()} == official_shapes[variant]["train"]


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_relatives(name, deploy, source, tmp_path):
    cfg = classifier(dict(FAMILY[name], deploy=False), 8 if "R" in name or name[0] == "h" else 256)
    model = build_untrained(cfg)
    if deploy:
        model.backbone.switch_to_deploy()
    save_checkpoint({"state_dict": model.state_dict()}, source)
    cfg.dump(tmp_path / "config.py")
    report, state = to_official(tmp_path / "config.py", source, tmp_path / "theirs.pth")
    cfg.model.backbone.deploy = deploy
    loaded = build_model(cfg, load_from_local(report.checkpoint))  # as it is
    assert official_state(loaded).keys() == state.keys()
    expected = {**model.backbone.state_dict()}
    assert state.keys() == expected.keys() | {"linear.weight", "linear.bias"}
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert torch.equal(state["linear.weight"], model.head.fc.weight)


def test_averaged_weights_in_half_precision(tiny_training_state, config, source, tmp_path):
    state = build_untrained(Config.fromfile(config)).state_dict()
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    save_checkpoint({"model": state, "ema": averaged}, source)
    _, written = to_official(config, source, tmp_path / "theirs.pth", ema=True, dtype="float16")
    assert torch.equal(written["head.weight"], averaged["head.fc.weight"].half())


def test_overwriting_and_checking(config, source, tmp_path):
    save_checkpoint({"state_dict": build_untrained(Config.fromfile(config)).state_dict()}, source)
    out = tmp_path / "out" / "theirs.pth"
    report = reparameterize_checkpoint(config, source, out, names="official", check=True)
    assert report.checkpoint is None and not out.parent.exists()
    first, _ = to_official(config, source, out)
    with pytest.raises(FileExistsError, match="already exists.*--overwrite"):
        to_official(config, source, out)
    second, _ = to_official(config, source, out, overwrite=True, dtype="float16")
    assert first.checkpoint != second.checkpoint and os.listdir(out.parent) == [second.checkpoint.name]


REFUSED = {
    "deploy form": (dict(REPMLPNET, deploy=True), {}, "in deploy form, with batch norms fused"),
    "no final norm": (dict(REPMLPNET, final_norm=False), {}, "no final norm"),
    "another backbone": (dict(type="LeNet5"), {}, "the backbone is LeNet5; .*RepMLPNet, RepMLPResNet, RepOptVGG"),
    "no head": (REPMLPNET, dict(head=None), "no head.fc"),
    "more": (REPMLPNET, dict(head=dict(type="StackedLinearClsHead", mid_channels=[8])), "the model has head.layers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_write_nothing(kind, source, tmp_path):
    backbone, changes, message = REFUSED[kind]
    cfg = classifier(backbone, 64)
    cfg.merge_from_dict(dict(model=changes))
    model = build_untrained(cfg)
    save_checkpoint({"state_dict": model.state_dict()}, source)
    cfg.dump(tmp_path / "config.py")
    with pytest.raises(MMRepMLPError, match=message):
        to_official(tmp_path / "config.py", source, tmp_path / "out/theirs.pth")
    assert not (tmp_path / "out").exists()


def test_names_are_one_of_two(config, source, tmp_path):
    with pytest.raises(ValueError, match="names='theirs': expected one of mmrepmlp, official"):
        reparameterize_checkpoint(config, source, tmp_path / "out.pth", names="theirs")
    with pytest.raises(ValueError, match="verify_on, tolerance and keep_training_state do not apply"):
        reparameterize_checkpoint(config, source, tmp_path / "out.pth", names="official", verify_on="test")
    with pytest.raises(ValueError, match="verify_on='val': expected one of None, test"):
        reparameterize_checkpoint(config, source, tmp_path / "out.pth", verify_on="val")
