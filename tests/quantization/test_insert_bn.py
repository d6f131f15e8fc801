# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import nn

from mmrepmlp.models import RepMLPNet
from mmrepmlp.quantization import QuantizedRepMLPNet, collect_statistics, insert_bn
from tests.conftest import TINY
from tests.helpers import randomize, relative_error

# 72 by 88 pixels: a map of several tiles, some of them filled up.
BATCHES = [torch.randn(n, 3, 72, 88, generator=torch.Generator().manual_seed(n)).double() for n in (3, 2)]


@pytest.fixture
def deployed():
    torch.manual_seed(0)
    network = randomize(RepMLPNet(TINY, img_size=64), torch.Generator().manual_seed(0), spread=0.1).double().eval()
    network.switch_to_deploy()
    return network


def blocks_of(network):
    return [unit.repmlp_block for stage in network.stages for unit in stage]


@torch.no_grad()
def test_insertion_is_the_identity_with_the_statistics_of_the_data(deployed):
    outputs = {}
    for i, block in enumerate(blocks_of(deployed)):
        block.fc3.register_forward_hook(lambda m, x, y, i=i: outputs.setdefault(i, []).append(y.clone()))
    expected = [deployed(batch)[0] for batch in BATCHES]
    inserted = insert_bn(copy.deepcopy(deployed), BATCHES)
    assert not inserted.deploy and not inserted.training
    for batch, e in zip(BATCHES, expected):
        assert relative_error(inserted(batch)[0], e) < 1e-12
    for i, block in enumerate(blocks_of(inserted)):
        assert isinstance(block.fc3_bn, nn.BatchNorm2d)
        seen = torch.cat([y.flatten(1) for y in outputs[i][:2]], 1)
        torch.testing.assert_close(block.fc3_bn.running_mean, seen.mean(1), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(block.fc3_bn.running_var, seen.var(1, correction=0), rtol=1e-8, atol=1e-12)


@torch.no_grad()
def test_folding_is_exact_whatever_was_learned(deployed):
    inserted = insert_bn(deployed, BATCHES)
    for block in blocks_of(inserted):
        block.fc3_bn.weight.mul_(torch.rand_like(block.fc3_bn.weight) + 0.5)
        block.fc3_bn.running_mean.add_(torch.randn_like(block.fc3_bn.running_mean))
    expected = inserted(BATCHES[0])[0]
    inserted.switch_to_deploy()
    assert inserted.deploy and not [m for m in inserted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert relative_error(inserted(BATCHES[0])[0], expected) < 1e-12


@torch.no_grad()
def test_a_network_built_with_the_norms_loads_what_has_them_or_not(deployed):
    training_form = randomize(RepMLPNet(TINY, img_size=64), torch.Generator().manual_seed(1), spread=0.1)
    for source in (deployed, training_form.double().eval()):
        network = QuantizedRepMLPNet(TINY, img_size=64, insert_bn=True).double().eval()
        network.load_state_dict(source.state_dict())
        # The identity that it is built with is one in float32, statistics are collected in float64.
        assert relative_error(network(BATCHES[0])[0], source(BATCHES[0])[0]) < 1e-7
        assert collect_statistics(network, BATCHES) == 5
        assert relative_error(network(BATCHES[0])[0], source(BATCHES[0])[0]) < 1e-10
        again = QuantizedRepMLPNet(TINY, img_size=64, insert_bn=True).double().eval()
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(BATCHES[0])[0], network(BATCHES[0])[0])
        folded = QuantizedRepMLPNet(TINY, img_size=64, deploy=True).double().eval()
        network.switch_to_deploy()
        folded.load_state_dict(network.state_dict())
        assert torch.equal(folded(BATCHES[0])[0], network(BATCHES[0])[0])


def test_what_cannot_be_collected_is_said(deployed):
    with pytest.raises(ValueError, match="insert_bn=True"):
        collect_statistics(deployed, BATCHES)
    with pytest.raises(ValueError, match="no images"):
        insert_bn(deployed, [])
