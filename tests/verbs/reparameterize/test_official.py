# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import torch
from mmpretrain.registry import MODELS

from mmrepmlp.apis import mmrepmlp_to_official, official_to_mmrepmlp
from mmrepmlp.checkpoint import load_from_local, save_checkpoint, to_official_names
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY

VARIANTS = [f"RepMLPNet-{name}" for name in ("T224", "T256", "B224", "B256", "D256", "L256")]


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source.pth"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_changes_nothing(tiny_state, source, tmp_path, suffix):
    save_checkpoint(tiny_state, source)
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    network = official_to_mmrepmlp(source, ours)
    assert (network.arch, network.img_size, network.num_classes) == (TINY, 64, 5)
    assert mmrepmlp_to_official(ours, theirs) == network
    back = load_from_local(theirs)
    back = back["state_dict"] if suffix == ".safetensors" else back
    assert back.keys() == tiny_state.keys()
    for name, value in tiny_state.items():
        assert torch.equal(back[name], value)


def test_the_classifier_computes_what_the_authors_does(tiny_state, tiny_outputs, source, tmp_path):
    save_checkpoint({"model": {f"module.{name}": value for name, value in tiny_state.items()}}, source)
    official_to_mmrepmlp(source, tmp_path / "ours.pth")
    model = MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, deploy=True),
            neck=dict(type="mmpretrain.GlobalAveragePooling"),
            head=dict(type="mmpretrain.LinearClsHead", num_classes=5, in_channels=64),
        )
    ).eval()
    model.load_state_dict(load_from_local(tmp_path / "ours.pth")["state_dict"], strict=True)
    with torch.no_grad():
        logits = model(tiny_outputs["native/input"])
    torch.testing.assert_close(logits, tiny_outputs["native/logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_all_released_variants_are_recognized(official_shapes, variant, form, source, tmp_path):
    shapes = official_shapes[variant][form]
    # One number behind each tensor keeps hundreds of megabytes from being written.
    state = {name: torch.ones(1).expand(shape) if shape else torch.tensor(0) for name, shape in shapes.items()}
    save_checkpoint({"ema": state}, source)
    network = official_to_mmrepmlp(source, tmp_path / "ours.pth", ema=True)
    assert str(network).startswith(f"{variant}, 1000 classes, in {'training form' if form == 'train' else 'the form'}")
    ours = load_from_local(tmp_path / "ours.pth")
    assert (ours["meta"]["arch"], ours["meta"]["img_size"]) == (variant[10], int(variant[11:]))
    backbone = {k.removeprefix("backbone."): v for k, v in ours["state_dict"].items() if k.startswith("backbone.")}
    if form == "train":
        with torch.device("meta"):
            expected = RepMLPNet(variant[10], img_size=int(variant[11:])).state_dict()
        assert {name: value.shape for name, value in backbone.items()} == {n: v.shape for n, v in expected.items()}
    mmrepmlp_to_official(tmp_path / "ours.pth", tmp_path / "theirs.pth")
    theirs = load_from_local(tmp_path / "theirs.pth")
    assert {name: list(value.shape) for name, value in theirs.items()} == shapes


def test_averaged_weights_on_request(tiny_training_state, source, tmp_path):
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in tiny_training_state.items()}
    save_checkpoint({"model": tiny_training_state, "ema": averaged}, source)
    for ema, expected in ((False, tiny_training_state), (True, averaged)):
        official_to_mmrepmlp(source, tmp_path / "ours.pth", ema=ema, overwrite=True)
        weight = load_from_local(tmp_path / "ours.pth")["state_dict"]["backbone.patch_embed.projection.weight"]
        assert torch.equal(weight, expected["conv_embedding.conv.weight"])
    save_checkpoint(tiny_training_state, source)
    with pytest.raises(ValueError, match="no averaged weights: its entries are conv_embedding.* and [0-9]+ more"):
        official_to_mmrepmlp(source, tmp_path / "ours.pth", ema=True, overwrite=True)


def test_refusals_write_nothing(tiny_training_state, source, tmp_path):
    out = tmp_path / "out/ours.pth"
    state = dict(tiny_training_state)
    del state["stages.0.0.prebn1.bias"], state["head.bias"]
    save_checkpoint(state, source)
    with pytest.raises(ValueError, match=r"missing: stages\.0\.0\.norm1\.bias, head\.fc\.bias\."):
        official_to_mmrepmlp(source, out)
    save_checkpoint({"layer1.weight": torch.ones(1)}, source)
    with pytest.raises(ValueError, match="no RepMLPNet, or an incomplete one: channels, .* cannot be inferred"):
        official_to_mmrepmlp(source, out)
    deployed = RepMLPNet(TINY, img_size=64, deploy=True).state_dict()
    save_checkpoint({f"backbone.{name}": value for name, value in deployed.items()}, source)
    with pytest.raises(ValueError, match="deploy form, in which batch norms are folded"):
        mmrepmlp_to_official(source, out)
    assert not out.parent.exists()
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(FileExistsError, match="already exists.*--overwrite"):
        official_to_mmrepmlp(source, out)
    assert out.read_text() == "precious" and os.listdir(out.parent) == ["ours.pth"]


def test_mmpretrains_layout_goes_through_the_same_door(tiny_state, source, tmp_path):
    save_checkpoint(tiny_state, source)
    network = official_to_mmrepmlp(source, tmp_path / "first.pth")  # has mmpretrain's names
    assert official_to_mmrepmlp(tmp_path / "first.pth", tmp_path / "second.pth") == network
    first, second = (load_from_local(tmp_path / f"{name}.pth")["state_dict"] for name in ("first", "second"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert to_official_names({"patch_embed.norm.bias": torch.ones(1)}).keys() == {"conv_embedding.bn.bias"}


FAMILY = {
    "RepMLP-ResNet with light blocks": dict(type="mmrepmlp.RepMLPResNet", block="light", base_channels=8),
    "RepMLP-ResNet with bottleneck blocks": dict(type="mmrepmlp.RepMLPResNet", block="bottleneck", base_channels=8),
    "RepOpt-VGG": dict(
        type="mmrepmlp.RepOptVGG", arch=dict(depths=[2, 1], channels=[4, 8]), strides=(2, 2, 2), out_indices=1
    ),
}
FAMILY["RepOpt-VGG, hyper-search"] = dict(FAMILY["RepOpt-VGG"], form="hyper_search")


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_relatives_become_classifiers_and_go_back(name, deploy, source, tmp_path):
    backbone = MODELS.build(FAMILY[name])
    if deploy:
        backbone.switch_to_deploy()
    channels = backbone.channels[-1]
    head = {"linear.weight": torch.randn(5, channels), "linear.bias": torch.randn(5)}
    theirs = {**backbone.state_dict(), **head}
    save_checkpoint({"model": {f"module.{key}": value for key, value in theirs.items()}}, source)
    network = official_to_mmrepmlp(source, tmp_path / "ours.pth")
    kept = "RepOpt-VGG" if deploy and "search" in name else name  # its scales are merged
    assert (network.network, network.form, network.num_classes) == (kept, "deploy" if deploy else "training", 5)
    model = MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(FAMILY[name], deploy=deploy),
            head=dict(type="mmpretrain.LinearClsHead", num_classes=5, in_channels=channels),
        )
    )
    state = load_from_local(tmp_path / "ours.pth")["state_dict"]
    model.load_state_dict(state, strict=True)
    assert torch.equal(model.head.fc.weight, head["linear.weight"])
    assert mmrepmlp_to_official(tmp_path / "ours.pth", tmp_path / "theirs.pth") == network
    back = load_from_local(tmp_path / "theirs.pth")
    assert back.keys() == theirs.keys() and all(torch.equal(back[key], value) for key, value in theirs.items())


def test_what_a_relative_does_not_have_is_said(source, tmp_path):
    state = {**MODELS.build(FAMILY["RepOpt-VGG"]).state_dict(), "decode_head.weight": torch.ones(1)}
    save_checkpoint(state, source)
    with pytest.raises(ValueError, match="RepOpt-VGG: decode_head.weight belong to neither backbone nor head"):
        official_to_mmrepmlp(source, tmp_path / "ours.pth")
    assert not (tmp_path / "ours.pth").exists()
