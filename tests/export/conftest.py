# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.models import RepMLPNet
from tests.conftest import SHALLOW
from tests.helpers import randomize


def random_network(**settings) -> RepMLPNet:
    torch.manual_seed(0)
    return randomize(RepMLPNet(SHALLOW, img_size=64, **settings), torch.Generator().manual_seed(0), spread=0.1).eval()


@pytest.fixture(scope="package")
def backbone() -> RepMLPNet:
    return random_network(out_indices=(0, 1, 2, 3))
