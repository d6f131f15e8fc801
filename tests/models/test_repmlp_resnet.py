# SPDX-License-Identifier: Apache-2.0
import copy
import re

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmrepmlp
from mmrepmlp.models import RepMLPResNet, RepMLPv1Block, image_size
from tests.helpers import randomize, relative_error

BLOCKS = ("light", "bottleneck")
both_blocks = pytest.mark.parametrize("block", BLOCKS)
TINY = dict(base_channels=8, img_size=64, h=2, w=2, reparam_conv_kernels=(1, 3), out_indices=(0, 1, 2, 3))


def tiny(block: str = "light", spread: float = 0.2, **settings) -> RepMLPResNet:
    torch.manual_seed(0)
    network = RepMLPResNet(block, **{**TINY, **settings})
    return randomize(network, torch.Generator().manual_seed(0), spread).eval()


def deployed(network: RepMLPResNet) -> RepMLPResNet:
    return mmrepmlp.switch_to_deploy(copy.deepcopy(network))


def images(number: int = 2, side: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def blocks_of(network: nn.Module) -> list[RepMLPv1Block]:
    return [module for module in network.modules() if isinstance(module, RepMLPv1Block)]


def parameters(**settings) -> int:
    """Of the network and a head of 1000 classes."""
    with torch.device("meta"):
        network = RepMLPResNet(**settings)
    return sum(p.numel() for p in network.parameters()) + 2049 * 1000


# Of the authors' networks: parameters and entries of a state dict, with the head.
RELEASED = {
    ("light", False): (87_038_248, 536),
    ("light", True): (86_142_440, 140),
    ("bottleneck", False): (41_071_144, 632),
    ("bottleneck", True): (40_871_528, 172),
}
SHAPES = {
    "light": {
        "stage0.conv.weight": (64, 3, 7, 7),
        "stage2.1.light_conv1.conv.weight": (64, 512, 1, 1),
        "stage2.1.light_repmlp.fc1_fc2.fc1.weight": (1024, 1024),
        "stage2.1.light_repmlp.fc1_fc2.fc2.weight": (1024, 1024),
        "stage2.1.light_repmlp.avg.bn.weight": (64,),
        "stage2.1.light_repmlp.fc3.weight": (3136, 784, 1, 1),
        "stage2.1.light_repmlp.fc3_bn.weight": (3136,),
        "stage2.1.light_repmlp.repconv1.conv.weight": (64, 16, 1, 1),
        "stage2.1.light_repmlp.repconv5.conv.weight": (64, 16, 5, 5),
        "stage2.1.light_conv3.conv.weight": (512, 64, 1, 1),
        "stage3.1.light_repmlp.fc1_fc2.fc1.weight": (512, 512),
        "stage3.5.light_repmlp.fc3.weight": (6272, 1568, 1, 1),
        "stage3.5.light_repmlp.repconv3.conv.weight": (128, 32, 3, 3),
        "stage4.0.shortcut.conv.weight": (2048, 1024, 1, 1),
    },
    "bottleneck": {
        "stage2.1.btnk_conv2.conv.weight": (64, 128, 3, 3),
        "stage2.1.btnk_repmlp.fc1_fc2.fc1.weight": (1024, 1024),
        "stage2.1.btnk_repmlp.fc3.weight": (3136, 392, 1, 1),
        "stage2.1.btnk_repmlp.repconv5.conv.weight": (64, 8, 5, 5),
        "stage2.1.btnk_conv4.conv.weight": (128, 64, 3, 3),
        "stage3.1.btnk_conv2.conv.weight": (64, 256, 3, 3),
        "stage3.1.btnk_repmlp.fc1_fc2.fc2.weight": (256, 256),
        "stage3.1.btnk_repmlp.fc3.weight": (3136, 392, 1, 1),
        "stage3.1.btnk_conv4.conv.weight": (256, 64, 3, 3),
    },
}


@both_blocks
@pytest.mark.parametrize("deploy", [False, True])
def test_the_published_networks(block, deploy):
    with torch.device("meta"):
        network = RepMLPResNet(block, deploy=deploy)
    assert (parameters(block=block, deploy=deploy), len(network.state_dict()) + 2) == RELEASED[block, deploy]
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    kept = {k: v for k, v in SHAPES[block].items() if not deploy or not re.search(r"bn\.|repconv", k)}
    assert {name: shapes.get(name) for name in kept} == kept
    network.switch_to_deploy()
    names = network.state_dict().keys()
    assert len(names) + 2 == RELEASED[block, True][1] and not any("bn." in n or "repconv" in n for n in names)


# In millions, of the bottleneck network in deploy form.
VARIANTS = [
    (dict(repmlp_stages=(2,), reduction=2, groups=4), 77.36),
    (dict(repmlp_stages=(2,), reduction=2), 52.78),
    (dict(repmlp_stages=(2,), reduction=8, groups=16), 24.26),
    (dict(repmlp_stages=(2,)), 30.88),
    (dict(repmlp_stages=(0, 1, 2)), 58.27),
    (dict(repmlp_stages=(0, 1, 2, 3)), 65.76),
    (dict(repmlp_stages=()), 25.56),  # ResNet-50, with biases instead of norms
    (dict(groups=(4, 8)), 44.56),
    (dict(groups=(8, 16), img_size=320, h=10, w=10, reparam_conv_kernels=(1, 3, 5, 7)), 59.22),
    (dict(groups=(4, 8), img_size=320, h=10, w=10, reparam_conv_kernels=(1, 3, 5, 7)), 87.38),
]


@pytest.mark.parametrize("settings, millions", VARIANTS, ids=str)
def test_the_papers_variants(settings, millions):
    assert parameters(block="bottleneck", deploy=True, **settings) / 1e6 == pytest.approx(millions, abs=0.03)


@both_blocks
@torch.no_grad()
def test_conversion_is_exact_and_idempotent(block):
    network = tiny(block, frozen_stages=1).double()
    expected, before = network(images(dtype=torch.float64)), network.train().state_dict()
    converted = deployed(network)
    assert converted.deploy and not network.deploy and before.keys() == network.state_dict().keys()
    assert not any(isinstance(module, _BatchNorm) for module in converted.modules())
    modes = {name: module.training for name, module in network.named_modules()}
    assert all(module.training == modes[name] for name, module in converted.named_modules() if name in modes)
    trainable = {name for name, parameter in converted.named_parameters() if parameter.requires_grad}
    assert trainable == {n for n in converted.state_dict() if not n.startswith(("stage0.", "stage1."))}
    kept = dict(converted.named_parameters())
    converted.switch_to_deploy()
    assert all(parameter is kept[name] for name, parameter in converted.named_parameters())
    for actual, out in zip(converted.train()(images(dtype=torch.float64)), expected, strict=True):
        assert relative_error(actual, out) < 1e-10
    single = tiny(block)
    for actual, out in zip(deployed(single)(images()), single(images())):
        assert relative_error(actual, out) < 1e-5


@both_blocks
@pytest.mark.parametrize("deploy", [False, True])
def test_maps_and_gradients(block, deploy):
    network = tiny(block, deploy=deploy).train()
    maps = network(images(3))
    assert [tuple(out.shape) for out in maps] == [(3, 32, 16, 16), (3, 64, 8, 8), (3, 128, 4, 4), (3, 256, 2, 2)]
    assert network.channels == [out.size(1) for out in maps]
    sum(out.square().mean() for out in maps).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_sizes_follow_the_arithmetic_of_convolutions():
    settings = dict(base_channels=8, img_size=(105, 137), h=7, w=9, strides=(1, 2, 1, 1), dilations=(1, 1, 1, 4))
    network = RepMLPResNet("bottleneck", **settings, reparam_conv_kernels=(3,), out_indices=(0, 1, 2, 3)).eval()
    maps = network(torch.randn(1, 3, 105, 137))
    assert [tuple(out.shape[2:]) for out in maps] == [(27, 35), (14, 18), (14, 18), (14, 18)]
    assert {block.map_size for block in blocks_of(network)} == {(14, 18)} and image_size(network) == (105, 137)
    convs = [conv for conv in network.stage4.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)]
    assert {conv.dilation for conv in convs} == {(4, 4)} and len(convs) == 3
    assert all(c.dilation == (1, 1) for c in network.stage3.modules() if isinstance(c, nn.Conv2d))


@pytest.mark.parametrize("deploy", [False, True])
def test_other_sizes_are_refused_with_the_reason(deploy):
    network = tiny(deploy=deploy)
    with pytest.raises(
        ValueError, match=r"has 16x16 pixels, but .* built for 8x8, since the fully connected .*img_size"
    ):
        network(images(1, 128))
    network(images(1, 63))  # its maps have the same sizes


@pytest.mark.parametrize("deploy", [False, True])
def test_maps_of_one_partition_as_built_take_whole_numbers_of_them(deploy):
    network = tiny(img_size=32, repmlp_stages=(2,), deploy=deploy)
    assert not any(block.has_global_perceptron for block in blocks_of(network))
    assert [out.shape[2] for out in network(images(1, 96))] == [24, 12, 6, 3]
    with pytest.raises(ValueError, match="has 5x5 pixels, which is no whole number of partitions of 2x2"):
        network(images(1, 80))


@both_blocks
@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("with_cp", [False, True])
def test_every_child_is_called(block, deploy, with_cp):
    network, calls = tiny(block, deploy=deploy, with_cp=with_cp).train(), set()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: calls.add(name))
    network(images())
    assert calls == {name for name, _ in network.named_modules()}


@both_blocks
def test_recomputing_changes_nothing(block):
    plain, recomputed = tiny(block).double().train(), tiny(block, with_cp=True).double().train()
    x = images(3, dtype=torch.float64)
    for network in (plain, recomputed):
        sum(out.square().mean() for out in network(x)).backward()
    theirs = dict(recomputed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-10, atol=1e-12)
    buffers = dict(recomputed.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in plain.named_buffers())


@pytest.mark.parametrize("frozen", range(-1, 5))
def test_frozen_stages(frozen):
    network = tiny(frozen_stages=frozen).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(images(4))
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (int(name[len("stage")]) > frozen), name
    for name, buffer in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(buffer, before[name]) == (int(name[len("stage")]) <= frozen), name
    network.switch_to_deploy()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (int(name[len("stage")]) > frozen), name


def test_norm_eval():
    network = tiny(norm_eval=True).train()
    assert network.training and not any(m.training for m in network.modules() if isinstance(m, _BatchNorm))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(images())
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_layer_depth():
    network = tiny()
    depth = {name: network.get_layer_depth(f"backbone.{name}", "backbone.") for name, _ in network.named_parameters()}
    assert {total for _, total in depth.values()} == {18}
    assert depth["stage0.conv.weight"][0] == 0 and depth["stage1.0.conv1.conv.weight"][0] == 1
    assert depth["stage2.1.light_repmlp.fc3.weight"][0] == 5 and depth["stage4.2.conv3.bn.bias"][0] == 16
    assert network.get_layer_depth("head.fc.weight", "backbone.") == (17, 18)


@torch.no_grad()
def test_fusing_by_mmcv_is_exact_and_converts():
    network = tiny().double()
    expected = network(images(dtype=torch.float64))
    fused = fuse_conv_bn(copy.deepcopy(network))
    for model in (fused, deployed(fused), fuse_conv_bn(deployed(network))):
        for actual, out in zip(model(images(dtype=torch.float64)), expected, strict=True):
            assert relative_error(actual, out) < 1e-10
    assert deployed(fused).deploy


@torch.no_grad()
def test_averaged_weights_convert():
    average = ExponentialMovingAverage(network := tiny().double(), momentum=0.5, update_buffers=True)
    for parameter in network.parameters():
        parameter.mul_(1.1)
    average.update_parameters(network)
    average.update_parameters(network)
    expected = average(images(dtype=torch.float64))
    mmrepmlp.switch_to_deploy(average)
    assert average.module.deploy
    for actual, out in zip(average(images(dtype=torch.float64)), expected):
        assert relative_error(actual, out) < 1e-10


@pytest.mark.parametrize("deploy", [False, True])
@torch.no_grad()
def test_it_compiles(deploy):
    network = tiny(deploy=deploy, out_indices=(0, 1))  # each unit takes a compiler its time
    compiled = torch.compile(network, backend="aot_eager")
    for actual, expected in zip(compiled(images()), network(images())):
        assert relative_error(actual, expected) < 1e-5
    with pytest.raises(ValueError, match="built for 8x8"):
        torch.compile(network, backend="eager")(images(1, 128))


@both_blocks
@pytest.mark.parametrize("deploy", [False, True])
def test_low_precision_and_autocast(block, deploy):
    network = tiny(block, deploy=deploy)
    expected = network(images())
    with torch.autocast("cpu", torch.bfloat16):
        assert all(relative_error(a, e) < 0.1 for a, e in zip(network(images()), expected))
        sum(out.float().square().mean() for out in network.train()(images(3))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    low = network.eval().bfloat16()(images().bfloat16())
    assert all(out.dtype == torch.bfloat16 and out.isfinite().all() for out in low)


def test_batch_norms_of_several_processes():
    network = tiny(norm_cfg=dict(type="SyncBN"))
    assert all(isinstance(m, nn.SyncBatchNorm) for m in network.modules() if isinstance(m, _BatchNorm))
    plain = tiny()
    plain.load_state_dict(network.state_dict())
    for mode in (True, False):
        for actual, expected in zip(network.train(mode)(images()), plain.train(mode)(images())):
            torch.testing.assert_close(actual, expected)


BAD = [
    (dict(block="heavy"), "block='heavy': expected one of 'light', 'bottleneck'"),
    (dict(depth=101), "depth=101: expected one of 50"),
    (dict(img_size=(64,)), r"img_size=\(64,\): expected a positive int or a pair"),
    (dict(img_size=72), r"img_size=\(72, 72\): the map of stage 1 has 9x9 pixels, which is no whole number"),
    (dict(repmlp_stages=(1, 4)), r"repmlp_stages=\(1, 4\): expected distinct ints from 0 to 3"),
    (dict(repmlp_stages=(1, 1)), r"repmlp_stages=\(1, 1\): expected distinct"),
    (dict(groups=3), "groups=3 does not divide RepMLP's in_channels=8"),
    (dict(groups=(4, 4, 4)), r"groups=\(4, 4, 4\): expected a positive int, or one for each of repmlp_stages=\(1, 2\)"),
    (dict(reduction=2), "reduction=2 has no meaning for block='light'"),
    (dict(block="bottleneck", reduction=0), r"reduction=0: expected a positive int, or one"),
    (dict(block="bottleneck", reduction=(1, 33), groups=1), "reduction=33: expected at most 32"),
    (dict(globalperceptron_reduction="4"), "globalperceptron_reduction='4': expected a positive int"),
    (dict(reparam_conv_kernels=(2,)), r"reparam_conv_kernels=\(2,\): expected distinct, odd"),
    (dict(strides=(1, 2, 2)), r"strides=\(1, 2, 2\): expected 4 positive ints"),
    (dict(dilations=2), "dilations=2: expected 4 positive ints"),
    (dict(out_indices=(4,)), r"out_indices=\(4,\): expected ints from -4 to 3"),
    (dict(frozen_stages=5), "frozen_stages=5: expected an int from -1 to 4"),
    (dict(base_channels=0), "base_channels=0: expected a positive int"),
    (dict(in_channels="3"), "in_channels='3': expected a positive int"),
    (dict(h=0), "h=0: expected a positive int"),
    (dict(norm_cfg=dict(type="LN")), "norm_cfg=.*only a batch norm allows"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=lambda value: str(value)[:40])
def test_arguments_out_of_range_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)
