# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of compressing trainings, converted and used by the other verbs."""

import json

import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import ConversionError, deploy_checkpoint, evaluate, evaluate_deployment, reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.compression import CompressionError, find_groups
from mmrepmlp.compression.compactor import compactors_in
from mmrepmlp.compression.csgd_hook import cluster
from mmrepmlp.compression.reduce import equalize, zero_filters
from mmrepmlp.verbs.model import build_model, build_untrained, count_macs
from tests.compression.test_groups import RESNET, build, classifier
from tests.fixtures import CONFIG
from tests.helpers import render

pytestmark = pytest.mark.slow
FEW = {"test_dataloader.dataset.indices": 32}


@pytest.fixture(scope="module")
def clustered(trained, tmp_path_factory):
    """A checkpoint as C-SGD leaves it: half of the filters are copies of others."""
    source = load_from_local(trained.checkpoint)
    model = build_model(Config.fromfile(CONFIG), source["state_dict"])
    clusters = {}
    for name, group in find_groups(model, streams=True).items():
        clusters[name] = cluster(model.get_submodule(name).weight, 0.5, group.sets)
        equalize(model, group, clusters[name])
    path = tmp_path_factory.mktemp("csgd") / "csgd.pth"
    save_checkpoint(
        {**source, "state_dict": model.state_dict(), "compression": {"CSGDHook": dict(clusters=clusters)}}, path
    )
    return path


@pytest.fixture(scope="module")
def small(clustered, trained, tmp_path_factory):
    """Its conversion."""
    out, options = tmp_path_factory.mktemp("out") / "deploy.pth", {**trained.options, **FEW}
    return reparameterize_checkpoint(CONFIG, clustered, out, verify_on="test", cfg_options=options)


def test_merged_filters_and_fused_branches_are_one_proved_conversion(small, trained):
    streams = {"backbone.patch_embed.projection", *(f"backbone.downsample_layers.{i}.conv" for i in range(3))}
    assert len(small.channels) == 14 and streams < set(small.channels)
    assert all(after == before // 2 for name, (before, after) in small.channels.items() if name not in streams)
    removal, training = small.compression
    assert removal.relative < 1e-12 and training.relative < 1e-12
    assert small.same_predictions == 1.0 and len(set(small.metrics["accuracy/top1"])) == 1
    assert small.parameters[1] < 0.85 * small.parameters[0] and small.macs[1] < 0.75 * small.macs[0]
    assert small.megabytes[1] < 0.85 * small.megabytes[0] and all(0.1 < time < 1e3 for time in small.milliseconds)
    table = render(small.table())
    assert "MB of weights" in table and "ms per image, eager" in table
    assert "channels of 14 layers" in table and "removal of channels" in table
    assert json.loads(small.checkpoint.with_suffix(".json").read_text())["compression"][0]["dtype"] == "float64"


def test_widths_of_a_repmlpnet_are_arguments_and_its_config_needs_no_tracing(small):
    cfg = Config.fromfile(small.config)
    assert cfg.model.type == "mmrepmlp.PrunedModel" and cfg.model.widths == {"head.fc": [10, 128]}
    assert cfg.model.backbone.arch.channels == [12, 24, 48, 128]  # as many in each set
    assert cfg.model.model.type == "ImageClassifier" and cfg.model.backbone.ffn_channels == [
        [48],
        [96],
        [192, 192],
        [384],
    ]
    assert cfg.model.backbone.gp_channels == [[3], [6], [12, 12], [24]] and cfg.model.backbone.deploy
    assert count_macs(build_untrained(Config.fromfile(small.config))) == small.macs[1]


def test_the_smaller_network_is_tested_and_deployed_as_any_other(small, trained, tmp_path):
    options = {**trained.options, **FEW}
    (expected,) = {after for _, after in small.metrics.values()}
    metrics = evaluate(small.config, small.checkpoint, str(tmp_path), cfg_options=options)
    assert metrics["accuracy/top1"] == expected
    deploy_checkpoint(small.config, small.checkpoint, tmp_path / "network", images=8, cfg_options=options)
    assert evaluate_deployment(small.config, tmp_path / "network", str(tmp_path), options)["accuracy/top1"] == expected


def test_compactors_are_fused_and_their_config_is_unwrapped(trained, tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(trained.options)
    cfg.model = dict(type="mmrepmlp.ResRep", model=cfg.model, layers=["ffn_fc1"])
    cfg.custom_hooks = [dict(type="mmrepmlp.ResRepHook"), dict(type="EMAHook")]
    cfg.dump(tmp_path / "resrep.py")
    model = build_model(cfg, load_from_local(trained.checkpoint)["state_dict"])
    for compactor in compactors_in(model).values():
        compactor.weight.data += 0.01 * torch.randn_like(compactor.weight)
        compactor.weight.data[::3] *= 1e-8
    save_checkpoint({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "resrep.pth")
    report = reparameterize_checkpoint(tmp_path / "resrep.py", tmp_path / "resrep.pth", tmp_path / "deploy.pth")
    written = Config.fromfile(report.config)
    assert written.model.type == "ImageClassifier" and [hook.type for hook in written.custom_hooks] == ["EMAHook"]
    assert written.model.backbone.ffn_channels == [[64], [128], [256, 256], [512]]
    removal, training = report.compression
    assert removal.relative < 1e-12 and 0 < training.relative < 1e-5


def test_what_did_not_finish_is_refused(clustered, trained, tmp_path):
    source = load_from_local(clustered)
    name = next(iter(source["compression"]["CSGDHook"]["clusters"]))
    source["state_dict"][f"{name}.weight"] *= 1 + 0.3 * torch.rand_like(source["state_dict"][f"{name}.weight"])
    save_checkpoint(source, tmp_path / "unfinished.pth")
    message = "compression that training left unfinished in float64: .* allowed 1e-03"
    with pytest.raises(ConversionError, match=message):
        reparameterize_checkpoint(CONFIG, tmp_path / "unfinished.pth", tmp_path / "deploy.pth")
    source["compression"]["CSGDHook"]["clusters"] = {"backbone.layer1": [0, 1]}
    save_checkpoint(source, tmp_path / "other.pth")
    with pytest.raises(CompressionError, match="in a layer backbone.layer1 that the model does not have"):
        reparameterize_checkpoint(CONFIG, tmp_path / "other.pth", tmp_path / "deploy.pth")
    assert not list(tmp_path.glob("deploy*"))


def test_a_network_of_another_package_is_written_as_a_pruned_model(tmp_path):
    cfg = Config(dict(model=classifier({**RESNET, "frozen_stages": 2}), default_scope="mmpretrain"))
    cfg.dump(tmp_path / "resnet.py")
    model = build(cfg.model, "mmpretrain").float()
    groups = find_groups(model)
    masks = {name: [int(i % 3 == 0) for i in range(group.channels)] for name, group in groups.items()}
    for name, group in groups.items():
        zero_filters(model, group, [i for i, kept in enumerate(masks[name]) if kept])
    content = {"meta": {}, "state_dict": model.state_dict(), "compression": {"AOFPHook": dict(masks=masks)}}
    save_checkpoint(content, tmp_path / "aofp.pth")
    source, out = tmp_path / "aofp.pth", tmp_path / "small.pth"
    report = reparameterize_checkpoint(tmp_path / "resnet.py", source, out, dtype="float16")
    states = [load_from_local(path)["state_dict"] for path in (source, report.checkpoint)]
    assert report.megabytes == tuple(sum(value.nbytes for value in state.values()) / 1e6 for state in states)
    assert list(report.channels) == list(masks) and report.compression[0].relative < 1e-12
    written = Config.fromfile(report.config)
    assert written.model.type == "mmrepmlp.PrunedModel"
    assert written.model.widths["backbone.layer4.1.conv1"] == [22, 64]
    smaller = build_model(written, load_from_local(report.checkpoint)["state_dict"])
    assert type(smaller) is type(model) and count_macs(smaller) == report.macs[1] < report.macs[0]
