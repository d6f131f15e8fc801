# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
from torch import nn

from mmrepmlp.engine import FakeQuantizeHook
from mmrepmlp.models import RepMLPNet
from mmrepmlp.quantization import QuantizedRepMLPNet
from tests.conftest import TINY


def begin_training(backbone: nn.Module, **settings) -> None:
    runner = SimpleNamespace(model=nn.ModuleDict(dict(backbone=backbone)), max_epochs=2)
    FakeQuantizeHook(**settings).before_train(runner)


def test_an_epoch_that_never_comes_is_refused():
    network = QuantizedRepMLPNet(arch=TINY, img_size=64)
    begin_training(network, begin=1)
    with pytest.raises(
        ValueError, match="with begin=2, fake quantization would never start, since training has 2 epochs"
    ):
        begin_training(network, begin=2)


def test_a_plain_network_is_refused():
    for backbone, advice in (
        (RepMLPNet(TINY, 64), "Use type='mmrepmlp.QuantizedRepMLPNet'"),
        (nn.Conv2d(3, 8, 3), r"Only RepMLPNet trains for int8\. .* --precision int8"),
    ):
        with pytest.raises(ValueError, match=f"the model has no QuantizedRepMLPNet. {advice}"):
            begin_training(backbone)
