# SPDX-License-Identifier: Apache-2.0
"""Channels that several layers write, and those of branches: found, made equal by C-SGD, and merged exactly."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.optim import SGD

from mmrepmlp.compression import CompressionError, CSGDHook, ResRep, find_groups
from mmrepmlp.compression.aofp_hook import statistics_kept
from mmrepmlp.compression.compress import Compressed
from mmrepmlp.compression.csgd_hook import cluster, filters, pulled_parameters, share_statistics
from mmrepmlp.compression.reduce import equalize, keep_filters, merge_clusters, plain_layer, zero_filters
from mmrepmlp.models import convs
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.model import build_untrained, deploy_config, random_images
from mmrepmlp.verbs.reparameterize.compressed import compressed_config
from tests.compression.test_groups import REPMLPNET, RESNET, SCENES, build, classifier, largest_error, outputs
from tests.compression.toy import ToyClassifier, runner, step
from tests.helpers import randomize

CONVS = ("ACBConv2d", "DBBConv2d", "RepVGGConv2d")
NETWORKS = {
    "ResNet": (classifier(RESNET), "mmpretrain"),
    "RepMLPNet": (classifier(REPMLPNET), "mmpretrain"),
    "UperNet": SCENES["UperNet"][:2],
    "RetinaNet": SCENES["RetinaNet"][:2],
    **{conv: (classifier({**RESNET, "conv_cfg": dict(type=f"mmrepmlp.{conv}")}), "mmpretrain") for conv in CONVS},
}


def stream(model: nn.Module, name: str) -> tuple[str, ...]:
    return find_groups(model, [name], streams=True)[name].writers


@pytest.mark.parametrize("cfg, scope", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_merging_equal_filters_is_exact_in_both_forms(cfg, scope):
    model = build(cfg, scope)
    with torch.enable_grad():
        groups = find_groups(model, streams=True)
    finished, clusters = copy.deepcopy(model), {}
    for name, group in groups.items():
        clusters[name] = cluster(filters(model, group), 0.6, group.sets)
        equalize(finished, group, clusters[name])
    narrower = copy.deepcopy(finished)
    for name, group in groups.items():
        merge_clusters(narrower, group, clusters[name])
    images = random_images(model, 2)
    expected = outputs(finished, images)
    assert largest_error(narrower, images, expected) < 1e-11
    deployed = switch_to_deploy(copy.deepcopy(narrower))
    assert largest_error(deployed, images, expected) < 1e-10
    assert largest_error(model, images, expected) > 1e-3  # something was merged
    widths = {name: len(plain_layer(narrower, name).weight) for group in groups.values() for name in group.writers}
    assert widths == {name: len(set(clusters[key])) for key, group in groups.items() for name in group.writers}

    written = compressed_config(Config(dict(model=cfg, default_scope=scope)), Compressed(model, narrower, groups))
    for settings, wanted in ((written, narrower), (deploy_config(written, narrower), deployed)):
        again = build_untrained(settings).double().eval()
        again.load_state_dict(wanted.state_dict(), strict=True)
        for actual, value in zip(outputs(again, images), outputs(wanted, images), strict=True):
            torch.testing.assert_close(actual, value, rtol=0, atol=0)


def test_layers_that_write_a_stream_follow_the_one_that_begins_it():
    model = build(*NETWORKS["ResNet"])
    prefix = "backbone.layer2"
    assert stream(model, f"{prefix}.0.downsample.0") == (
        f"{prefix}.0.downsample.0",
        f"{prefix}.0.conv2",
        f"{prefix}.1.conv2",
    )
    assert stream(model, "backbone.conv1") == ("backbone.conv1", "backbone.layer1.0.conv2", "backbone.layer1.1.conv2")
    # Any of the writers names the stream.
    assert find_groups(model, [f"{prefix}.1.conv2"], streams=True).keys() == {f"{prefix}.0.downsample.0"}
    with pytest.raises(CompressionError, match=r"only C-SGD can merge \(streams=True\)"):
        find_groups(model, [f"{prefix}.1.conv2"])
    detector = build(*NETWORKS["RetinaNet"])
    assert stream(detector, "neck.lateral_convs.0.conv") == tuple(f"neck.lateral_convs.{i}.conv" for i in range(3))


def test_streams_of_repmlpnet_keep_their_sets():
    model = build(*NETWORKS["RepMLPNet"])
    groups = find_groups(model, streams=True)
    for stage, sets in enumerate(model.backbone.sharesets_nums):
        name = f"downsample_layers.{stage - 1}.conv" if stage else "patch_embed.projection"
        assert groups[f"backbone.{name}"].sets == sets
    # Unbalanced, the same removal is wrong.
    group = groups["backbone.downsample_layers.1.conv"]
    clusters = cluster(filters(model, group), 0.5)
    equalize(model, group, clusters)
    images = random_images(model, 1)
    expected = outputs(model, images)
    merge_clusters(model, group, clusters)
    assert group.sets == 4 and largest_error(model, images, expected) > 0.01


def test_frozen_streams_and_outputs_stay():
    model = build({**RESNET, "frozen_stages": 2, "out_indices": (0, 1, 2, 3)}, "mmpretrain")
    groups = find_groups(model, streams=True)
    assert groups.keys() == {f"layer{i}.{j}.conv1" for i in (3, 4) for j in (0, 1)}


def test_what_copies_its_input_cannot_be_merged():
    groups = find_groups(build(*NETWORKS["RepVGGConv2d"]))
    assert groups.keys() == {f"backbone.layer{i}.0.conv1" for i in (2, 3, 4)}  # others have an identity branch


def pull_together(model: nn.Module, name: str, steps: int) -> list[int]:
    """Train the filters of a group until those of its clusters are equal; returns the clusters."""
    group = find_groups(model, [name], streams=True)[name]
    clusters = cluster(filters(model, group), 0.5)
    hook, optimizer = CSGDHook(), SGD(model.parameters(), lr=0.1, momentum=0.5)
    share_statistics(model, {name: group}, {name: clusters})
    hook.pulled = pulled_parameters(model, group, torch.tensor(clusters), 20.0)
    optimizer.register_step_pre_hook(hook.enter_step)
    for index in range(steps):
        step(model, optimizer, index)
    model.eval()
    return clusters


def test_weights_that_layers_share_stay():
    model = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU())], nn.Conv2d(4, 2, 1))
    model.insert(0, nn.Conv2d(3, 4, 1))
    assert find_groups(model).keys() == {"0", "1", "3", "5"}
    model[3].weight = model[1].weight
    assert find_groups(model).keys() == {"5"}


@pytest.mark.parametrize("conv", CONVS)
def test_branches_become_equal_together(conv):
    torch.manual_seed(0)
    model = ToyClassifier().double().train()
    model.conv1 = getattr(convs, conv)(3, 8, 3, padding=1).double()
    clusters = pull_together(model, "conv1", 200)
    first = [clusters.index(number) for number in clusters]
    assert len(set(clusters)) == 4
    for layer in (*model.conv1.get_equivalent_kernel_bias(), model.bn1.running_mean, model.bn1.running_var):
        torch.testing.assert_close(layer[first], layer, rtol=1e-9, atol=1e-9)


def test_channels_behind_norms_in_eval_mode_become_equal(monkeypatch):
    torch.manual_seed(0)
    model = randomize(ToyClassifier(), torch.Generator().manual_seed(0)).double().train()
    train = ToyClassifier.train
    monkeypatch.setattr(ToyClassifier, "train", lambda self, mode=True: (train(self, mode), self.bn2.eval())[0])
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model)
    before.eval()
    groups = find_groups(model, ["conv2"])
    after = copy.deepcopy(model)
    share_statistics(after, groups, {"conv2": [0, 0, 0, 1, 1, 2, 3, 3]})
    after.eval()
    torch.testing.assert_close(after(images), before(images), rtol=1e-12, atol=1e-12)
    assert not torch.equal(after.bn2.running_mean, before.bn2.running_mean)
    assert torch.equal(after.bn1.running_mean, before.bn1.running_mean)

    model.train()
    clusters = pull_together(model, "conv2", 300)
    expected, group = model(images), groups["conv2"]
    merge_clusters(model, group, clusters)
    torch.testing.assert_close(model(images), expected, rtol=1e-8, atol=1e-8)


def test_frozen_norms_are_refused(tmp_path):
    run = runner(tmp_path, dict(type="mmrepmlp.CSGDHook", strength=20.0))
    run.model.bn2.requires_grad_(False)
    with pytest.raises(CompressionError, match="The filters of conv2 cannot become equal: their parameters"):
        run.train()


def test_linear_layers_of_transformers_are_found():
    for backbone, layers in (
        (dict(type="mmpretrain.VisionTransformer", arch="deit-t", img_size=64, patch_size=16), "ffn.layers.0.0"),
        (dict(type="mmpretrain.ConvNeXt", arch=dict(depths=[1] * 4, channels=[8] * 4)), "pointwise_conv1"),
    ):
        model = build({**backbone, "out_indices": -1}, "mmpretrain")
        groups = find_groups(model)
        assert groups and all(name.endswith(layers) for name in groups)
        images, kept = torch.randn(1, 3, 64, 64, dtype=torch.float64), [0, 2, 5, 7]
        for group in groups.values():
            zero_filters(model, group, kept)
        expected = model(images)
        for group in groups.values():
            keep_filters(model, group, kept)
        for actual, wanted in zip(model(images), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_other_methods_know_branches():
    torch.manual_seed(0)
    model = ToyClassifier().double().train()
    model.conv2 = convs.DBBConv2d(8, 8, 3, padding=1).double()
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    with statistics_kept(model.conv2):
        model.conv2(torch.randn(4, 8, 5, 5, dtype=torch.float64))
    for name, value in model.named_buffers():
        assert torch.equal(value, statistics[name])
    assert all(norm.track_running_stats for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))

    MODELS.register_module(
        name="Branched", module=lambda: nn.Sequential(model.conv2, nn.ReLU(), nn.Conv2d(8, 1, 1)), force=True
    )
    with pytest.raises(CompressionError, match="0 has branches and no batch norm after it for a compactor"):
        ResRep(dict(type="Branched"))
