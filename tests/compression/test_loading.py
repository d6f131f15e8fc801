# SPDX-License-Identifier: Apache-2.0
"""Compressed checkpoints with the config of the network that was compressed."""

import copy

import pytest
import torch
from mmengine.config import Config

from mmrepmlp.checkpoint import check_state_dict
from mmrepmlp.compression import find_groups
from mmrepmlp.compression.reduce import keep_filters
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.model import build_fitting
from tests.compression.test_groups import REPMLPNET, RESNET, build, classifier

FFN = r"another RepMLPNet: ffn_channels \[\[16\], \[32\], \[64\], \[128\]\] \(the model: \[\[32\], .*\]\]\)"
GP = r"; gp_channels \[\[1\], \[2\], \[4\], \[8\]\] \(the model: \[\[2\], .*\]\]\)"
CONV = r"of another shape: backbone.layer1.0.conv1.weight \[4, 8, 3, 3\] \(the model: \[8, 8, 3, 3\]\), .* more"
MODELS = {
    "RepMLPNet": (REPMLPNET, None, FFN + GP),
    "feed-forward networks": (REPMLPNET, ["ffn_fc1"], FFN),
    "ResNet": (RESNET, None, CONV),
}


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("backbone, layers, message", MODELS.values(), ids=MODELS)
def test_the_widths_and_the_config_to_take_are_named(backbone, layers, message, form):
    cfg = Config(dict(model=classifier(backbone), default_scope="mmpretrain"))
    model = build(cfg.model, "mmpretrain").float()
    for group in find_groups(model, layers).values():
        keep_filters(model, group, range(0, group.channels, 2))
    state = (switch_to_deploy(copy.deepcopy(model)) if form == "deploy" else model).state_dict()
    with pytest.raises(ValueError, match=rf"{message}\. .*the config that mmrepmlp reparameterize writes beside"):
        build_fitting(cfg, state)


@pytest.mark.parametrize("given", [dict(head=(5, 8)), dict(stem=(8, 1)), dict(head=(5, 9), stem=(4, 3))])
def test_other_classes_or_images_are_no_compression(given):
    expected = dict(head=torch.ones(10, 8), stem=torch.ones(8, 3))
    with pytest.raises(ValueError, match=r"of another shape: .*\(the model: \[[\d, ]+\]\)\.$"):
        check_state_dict(expected, {**expected, **{name: torch.ones(shape) for name, shape in given.items()}})
