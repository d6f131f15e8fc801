# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.models import RepMLPBlock, RepMLPNet
from mmrepmlp.reparam import conv_to_fc
from tests.conftest import TINY
from tests.helpers import randomize, relative_error


def test_it_starts_from_the_sum_of_what_the_branches_start_from():
    torch.manual_seed(3)
    block = RepMLPBlock(8, 5, 4, (1, 3), num_sharesets=2, fc3_norm_init=0.3, gradient_reparam=True)
    torch.manual_seed(3)
    branches = RepMLPBlock(8, 5, 4, (1, 3), num_sharesets=2)
    kernels = sum(conv_to_fc(branch.conv.weight, 5, 4) for branch in branches.local_branches)
    expected = 0.3 * branches.fc3.weight + kernels.view_as(branches.fc3.weight)
    assert relative_error(block.fc3.weight.detach(), expected.detach()) < 1e-6
    assert torch.equal(block.fc3_bn.weight, torch.ones(2)) and not block.local_branches


def test_its_states_are_those_of_a_network_without_local_branches():
    network = RepMLPNet(TINY, img_size=64, gradient_reparam=True)
    plain = RepMLPNet(TINY, img_size=64, reparam_conv_kernels=None)
    assert network.state_dict().keys() == plain.state_dict().keys()
    randomize(network, torch.Generator().manual_seed(0), spread=0.1)
    plain.load_state_dict(network.state_dict())
    deployed = RepMLPNet(TINY, img_size=64, gradient_reparam=True, deploy=True)
    deployed.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 96)
    expected = network.eval()(images)[0]
    network.switch_to_deploy()
    for other in (plain.eval(), deployed.eval(), network):
        assert relative_error(other(images)[0].detach(), expected.detach()) < 1e-5
    assert not any(
        module.linear_additions()
        for module in (*network.modules(), *deployed.modules())
        if isinstance(module, RepMLPBlock)
    )


def test_branches_do_not_load_into_their_sum():
    network = RepMLPNet(TINY, img_size=64, gradient_reparam=True)
    with pytest.raises(ValueError, match=r"reparam_conv_kernels \[1, 3\] \(the model: \[\]\)"):
        network.load_state_dict(RepMLPNet(TINY, img_size=64).state_dict())
