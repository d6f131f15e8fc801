# SPDX-License-Identifier: Apache-2.0
"""Re-parameterizable convolutions by ``conv_cfg`` in networks of the three frameworks, and their conversion."""

from pathlib import Path

import mmpretrain.models  # noqa: F401  registers the backbones
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.models.convs import ReparameterizableConv2d
from mmrepmlp.reparam import switch_to_deploy
from tests.fixtures import ROOT
from tests.helpers import needs_export, randomize, relative_error
from tests.verbs.reparameterize.test_reparameterize_models import assert_converts, save_random, write_config

NAMES = ("ACBConv2d", "RepVGGConv2d", "DBBConv2d")
SLIM = dict(type="ResNet", depth=18, stem_channels=8, base_channels=8)
TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
HOSTS = {
    "mmpretrain": (
        "model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, "
        "out_indices=(3,), conv_cfg=CONV), neck=dict(type='GlobalAveragePooling'), "
        "head=dict(type='LinearClsHead', num_classes=5, in_channels=64))\n"
        "data_preprocessor = dict(num_classes=5, mean=[127.5] * 3, std=[127.5] * 3)"
    ),
    "mmseg": (
        "_base_ = ['mmseg::_base_/models/fcn_r50-d8.py']\n"
        "model = dict(pretrained=None, data_preprocessor=dict(size=(64, 64)), "
        "backbone=dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8, norm_cfg=dict(type='BN'), "
        "conv_cfg=CONV), decode_head=dict(in_channels=64, channels=16, num_classes=3, norm_cfg=dict(type='BN'), "
        "conv_cfg=CONV), auxiliary_head=dict(in_channels=32, channels=8, num_classes=3, norm_cfg=dict(type='BN')))"
    ),
    "mmdet": (
        "_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py']\n"
        "model = dict(backbone=dict(depth=18, base_channels=8, stem_channels=8, init_cfg=None, conv_cfg=CONV), "
        "neck=dict(in_channels=[8, 16, 32, 64], out_channels=16, conv_cfg=CONV), "
        "bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16, conv_cfg=CONV))"
    ),
}


def openvino_graph(path: Path) -> object:
    import openvino

    return openvino.Core().read_model(path)


def build_resnet(conv_cfg: dict | None, **settings) -> nn.Module:
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        network = MODELS.build(dict(SLIM, conv_cfg=conv_cfg, **settings))
    network.eval()
    return network


def convs_of(model: nn.Module) -> list[ReparameterizableConv2d]:
    return [module for module in model.modules() if isinstance(module, ReparameterizableConv2d)]


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "name"), zip(HOSTS, NAMES))
def test_networks_of_all_frameworks_convert(scope, name, tmp_path):
    text = HOSTS[scope].replace("CONV", f"dict(type='mmrepmlp.{name}')")
    config = write_config(tmp_path, scope, text)
    report = assert_converts(config, tmp_path, "output", outputs=10 if scope == "mmdet" else 1)
    assert len(report.converted) >= {"mmpretrain": 17, "mmseg": 17, "mmdet": 17 + 5 + 8}[scope]


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_from_a_pretrained_plain_network(name, tmp_path):
    plain = randomize(build_resnet(None), torch.Generator().manual_seed(0), spread=0.1)
    save_checkpoint({"state_dict": plain.state_dict()}, tmp_path / "plain.pth")
    network = build_resnet(dict(type=f"mmrepmlp.{name}"))
    load_checkpoint(network, str(tmp_path / "plain.pth"), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(network(x)[0], plain(x)[0]) < 1e-4
        # As the host's own init_cfg loads it.
        pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"))
        other = build_resnet(dict(type=f"mmrepmlp.{name}"), init_cfg=pretrained)
        other.init_weights()
        assert relative_error(other(x)[0], plain(x)[0]) < 1e-4
        assert relative_error(switch_to_deploy(other)(x)[0], plain(x)[0]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_outlast_those_of_the_host(name):
    network = build_resnet(dict(type=f"mmrepmlp.{name}", single_init=True))
    network.init_weights()
    for conv in convs_of(network):
        main, *others = conv.last_norms().values()
        assert main.weight.eq(1).all() and all(norm.weight.eq(0).all() for norm in others)


def count_exported(network: nn.Module, folder: Path) -> int:
    """The number of convolutions in a network's graph."""
    from mmrepmlp.export import export_onnx

    return export_onnx(network, folder / "network.onnx", size=(64, 64)).operators["Conv"]


@pytest.fixture(scope="module")
def plain_count(tmp_path_factory) -> int:
    return count_exported(build_resnet(None, **TWO_STAGES), tmp_path_factory.mktemp("plain"))


@needs_export
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_network_has_as_many_convolutions_as_a_plain_one(name, plain_count, tmp_path):
    network = build_resnet(dict(type=f"mmrepmlp.{name}"), **TWO_STAGES)
    randomize(network, torch.Generator().manual_seed(0), 0.1)
    assert count_exported(network, tmp_path) == plain_count and not convs_of(network)[0].deploy


@needs_export
@pytest.mark.slow
def test_a_converted_network_is_deployed(tmp_path):
    from mmrepmlp.apis import deploy_checkpoint

    pytest.importorskip("openvino")
    config = write_config(
        tmp_path, "mmpretrain", HOSTS["mmpretrain"].replace("CONV", "dict(type='mmrepmlp.DBBConv2d')")
    )
    save_random(config, tmp_path / "trained.pth")
    report = deploy_checkpoint(config, tmp_path / "trained.pth", tmp_path / "network", size=(64, 64))
    assert max(report.proof.errors.values()) < 1e-4
    computed = [node.get_type_name() for node in openvino_graph(tmp_path / "network/model.xml").get_ops()]
    assert computed.count("Convolution") == 20 and "BatchNormInference" not in computed


@pytest.mark.parametrize("name", ["dbb", "acb"])
def test_imagenet_configs_deploy_as_the_plain_network(name):
    cfg = Config.fromfile(ROOT / f"configs/{name}/resnet18_{name}_8xb32_in1k.py")
    plain = get_config("mmpretrain::resnet/resnet18_8xb32_in1k.py")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model, expected = MODELS.build(cfg.model), MODELS.build(plain.model)
    convs = convs_of(model)
    assert len(convs) == 17 and all(type(conv).__name__ == f"{name.upper()}Conv2d" for conv in convs)
    shapes = {key.replace("reparam.", ""): value.shape for key, value in switch_to_deploy(model).state_dict().items()}
    plain_shapes = {key: value.shape for key, value in expected.state_dict().items()}
    biases = shapes.keys() - plain_shapes.keys()
    assert len(biases) == 17 and all(key.endswith(".bias") for key in biases)
    assert {key: shape for key, shape in shapes.items() if key not in biases} == plain_shapes
