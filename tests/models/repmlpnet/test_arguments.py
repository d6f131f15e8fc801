# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.models import RepMLPNet, RepMLPResNet, RepOptVGG
from tests.conftest import TINY


@pytest.mark.parametrize("names", [("T", "tiny"), ("B", "base"), ("D", "deep"), ("L", "LARGE")])
def test_names_of_architectures(names):
    with torch.device("meta"):
        letter, word = (RepMLPNet(name).arch_settings for name in names)
    assert letter == word


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(arch="X"), r"arch='X' is unknown: expected one of T \(tiny\)"),
        (dict(arch=dict(channels=[8], depths=[1])), "exactly the keys"),
        (dict(arch={**TINY, "extra": 1}), "exactly the keys"),
        (dict(arch={**TINY, "depths": [1, 1]}), r"channels=\[8, .*: expected 2 positive ints, one for each stage"),
        (dict(arch={**TINY, "depths": [1, 1, 0, 1]}), r"depths=\[1, 1, 0, 1\]: expected 4 positive ints"),
        (dict(arch={**TINY, "depths": 1}), "depths=1: expected 1 positive ints"),
        (dict(arch={**TINY, "sharesets_nums": [1, 2, 5, 8]}), "32 channels of stage 2 .*sharesets_nums=5"),
        (dict(img_size=0), "img_size=0: expected a positive int"),
        (dict(img_size="64"), "img_size='64': expected a positive int or a pair"),
        (dict(norm_cfg=dict(type="BatchNrom")), r"norm_cfg=.*BatchNrom.* does not build a norm .*dict\(type='BN'\)"),
        (dict(norm_cfg=dict(type="BN", epsilon=1)), r"norm_cfg=.* does not build a norm .*epsilon"),
        (dict(norm_cfg=None), r"norm_cfg=None does not build a norm"),
        (dict(norm_cfg=dict(type="GN")), r"norm_cfg=.*GN.* does not build a norm \(AssertionError"),
        (dict(patch_size=(4, 4, 4)), "patch_size=.*pair"),
        (dict(out_indices=(4,)), r"out_indices=\(4,\): expected ints from -4 to 3"),
        (dict(out_indices=()), "out_indices"),
        (dict(out_indices=(3, -1)), "twice"),
        (dict(frozen_stages=5), "frozen_stages=5: expected an int from -1 to 4"),
        (dict(drop_path_rate=1.0), r"drop_path_rate=1\.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepMLPNet(**{"arch": TINY, "img_size": 64, **arguments})


@pytest.mark.parametrize("network", [RepMLPNet, RepMLPResNet, RepOptVGG])
@pytest.mark.parametrize("name", ["pretrained", "image_size"])
def test_unknown_arguments_are_named_by_python(network, name):
    with pytest.raises(TypeError, match=rf"{network.__name__}\.__init__\(\) .*argument '{name}'"):
        network(TINY if network is RepMLPNet else "light", **{name: 1})
