# SPDX-License-Identifier: Apache-2.0
import mmcv
import pytest
import torch

from mmrepmlp.apis import reparameterize_checkpoint
from mmrepmlp.models import RepMLPBlock
from mmrepmlp.verbs.visualize_fc3 import fc3_share, receptive_weights, visualize_fc3
from tests.fixtures import CONFIG
from tests.helpers import randomize


def test_maps_are_what_impulses_bring_about():
    impulses = torch.eye(12, dtype=torch.float64).view(12, 1, 3, 4).expand(-1, 6, -1, -1)
    block = RepMLPBlock(6, 3, 4, (1, 3), 2, num_sharesets=3)
    randomize(block, torch.Generator().manual_seed(0)).double().eval()
    with torch.no_grad():
        response = block.perceive_tiles(impulses) - block.perceive_tiles(torch.zeros_like(impulses))
        whole = response.view(3, 4, 6, 3, 4)  # input pixel, channel, output pixel
        before, after = zip(*(receptive_weights(block, s, (1, 2)) for s in range(3)))
        for name in ("repconv1", "repconv3"):
            getattr(block, name).conv.weight.zero_()
        response = block.perceive_tiles(impulses) - block.perceive_tiles(torch.zeros_like(impulses))
        alone = response.view(3, 4, 6, 3, 4)
    for channel in range(6):
        torch.testing.assert_close(after[channel % 3], whole[:, :, channel, 1, 2], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(before[channel % 3], alone[:, :, channel, 1, 2], rtol=1e-10, atol=1e-12)
        assert not torch.equal(whole[:, :, channel, 1, 2], alone[:, :, channel, 1, 2])


def test_share_of_constructed_weights():
    block = RepMLPBlock(4, 3, 3, (3,), num_sharesets=2).eval()
    kernel, norms = block.repconv3.conv.weight, (block.fc3_bn, block.repconv3.bn)
    with torch.no_grad():
        for norm in norms:
            norm.weight.fill_((1 + norm.eps) ** 0.5)  # the identity
        block.fc3.weight.fill_(1)  # 2 sets * 81 weights of 1
        kernel.zero_()[:, :, 1, 1] = 3  # on the diagonal, 2 sets * 9 weights of 3
        assert fc3_share(block) == pytest.approx(0.5, rel=1e-6)
        block.fc3_bn.weight[0] = 0
        assert fc3_share(block) == pytest.approx(1 / 3, rel=1e-6)
        block.fc3_bn.weight.zero_()
        assert fc3_share(block) == 0
        kernel.zero_()
        assert fc3_share(block) == 0


def test_share_without_branches_over_several_blocks_and_in_deploy_form():
    alone, both = RepMLPBlock(4, 3, 3).eval(), RepMLPBlock(4, 3, 3, (1, 3)).eval()
    assert fc3_share(alone) == 1
    assert fc3_share(both) < fc3_share(alone, both) < 1
    both.switch_to_deploy()
    with pytest.raises(ValueError, match="in deploy form, with the convolutions fused into fc3"):
        fc3_share(alone, both)


@pytest.mark.slow
def test_picture_of_a_trained_network(trained, tmp_path):
    picture = tmp_path / "fc3.png"
    shares = visualize_fc3(CONFIG, trained.checkpoint, picture, channel_set=100, pixel=(3, 5))
    assert len(shares) == 4 and all(0 < share < 0.1 for share in shares)  # fc3_norm_init=0.1
    assert mmcv.imread(str(picture)).shape == (836, 1320, 3)
    with pytest.raises(ValueError, match=r"pixel=\(16, 0\) is outside the tile of 16 by 16"):
        visualize_fc3(CONFIG, trained.checkpoint, picture, pixel=(16, 0))
    report = reparameterize_checkpoint(CONFIG, trained.checkpoint, tmp_path / "deploy.pth")
    with pytest.raises(ValueError, match="in deploy form, the convolutions are fused into fc3"):
        visualize_fc3(report.config, report.checkpoint, picture)
