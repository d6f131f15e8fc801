# SPDX-License-Identifier: Apache-2.0
from mmrepmlp.checkpoint.names import SYNONYMS, architecture_of, form_of, rename
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY


def test_forms_and_architecture_are_read_from_names_and_shapes(tiny_state):
    state = rename(tiny_state, SYNONYMS)
    training = any("fc3_bn" in name for name in state)
    assert form_of(state) == ("training" if training else "injected")
    assert form_of(RepMLPNet(TINY, img_size=64, deploy=True).state_dict()) == "deploy"
    architecture = architecture_of(state)
    assert {key: architecture[key] for key in TINY} == TINY
    assert architecture["tile_pixels"] == [256, 64, 16, 4]
    assert architecture["gp_channels"] == [[2], [4], [8, 8], [16]]
    assert architecture["in_channels"] == 3 and architecture["patch_size"] == [4, 4]
    assert architecture.get("reparam_conv_kernels") == ([1, 3] if training else None)
