# SPDX-License-Identifier: Apache-2.0
import copy
import re

import pytest
import torch
from torch import nn

import mmrepmlp
from mmrepmlp.models import RepMLPResNet, RepMLPv1Block, image_size
from tests.helpers import randomize

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
    with pytest.raises(ValueError, match=r"has 16x16 pixels, but .* built for 8x8: the fully connected .*img_size"):
        network(images(1, 128))
    network(images(1, 63))  # its feature maps have the same sizes
    with pytest.raises(ValueError, match="built for 8x8"):
        torch.compile(network, backend="eager")(images(1, 128))


BAD = [
    (dict(block="heavy"), "block='heavy': expected one of 'light', 'bottleneck'"),
    (dict(depth=101), "depth=101: expected one of 50"),
    (dict(img_size=(64,)), r"img_size=\(64,\): expected a positive int or a pair"),
    (dict(img_size=72), r"map_size=\(9, 9\) is not divisible into partitions of h=2 by w=2 .* change the img_size"),
    (dict(repmlp_stages=(1, 4)), r"repmlp_stages=\(1, 4\): expected distinct ints from 0 to 3"),
    (dict(repmlp_stages=(1, 1)), r"repmlp_stages=\(1, 1\): expected distinct"),
    (dict(groups=3), "groups=3 does not divide RepMLP's in_channels=8"),
    (dict(groups=(4, 4, 4)), r"groups=\(4, 4, 4\): expected a positive int, or one for each of repmlp_stages=\(1, 2\)"),
    (dict(reduction=2), "reduction=2 has no effect with block='light'"),
    (dict(block="bottleneck", reduction=0), r"reduction=0: expected a positive int, or one"),
    (dict(block="bottleneck", reduction=(1, 33), groups=1), "reduction=33: expected at most 32"),
    (dict(globalperceptron_reduction="4"), "globalperceptron_reduction='4': expected a positive int"),
    (dict(strides=(1, 2, 2)), r"strides=\(1, 2, 2\): expected 4 positive ints"),
    (dict(dilations=2), "dilations=2: expected 4 positive ints"),
    (dict(out_indices=(4,)), r"out_indices=\(4,\): expected ints from -4 to 3"),
    (dict(frozen_stages=5), "frozen_stages=5: expected an int from -1 to 4"),
    (dict(base_channels=0), "base_channels=0: expected a positive int"),
    (dict(in_channels="3"), "in_channels='3': expected a positive int"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=lambda value: str(value)[:40])
def test_arguments_out_of_range_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)
