# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
from torch import nn

from mmrepmlp.engine import CollectStatisticsHook
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY


def test_a_plain_network_is_refused():
    model = nn.ModuleDict(dict(backbone=RepMLPNet(TINY, 64)))
    with pytest.raises(ValueError, match="insert_bn=True"):
        CollectStatisticsHook().before_train(SimpleNamespace(iter=0, model=model, train_dataloader=[]))
