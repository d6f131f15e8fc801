# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config

from mmrepmlp.apis.model import deploy_config
from mmrepmlp.models import RepMLPNet
from mmrepmlp.quantization import QuantizedRepMLPNet


class PassesOn(RepMLPNet):
    def __init__(self, extra=0, **kwargs):
        super().__init__(**kwargs)


class PassesNothingOn(RepMLPNet):
    def __init__(self, arch):
        super().__init__(arch)


@pytest.mark.parametrize(
    "kind, deploy", [(RepMLPNet, True), (QuantizedRepMLPNet, True), (PassesOn, True), (PassesNothingOn, None)]
)
def test_the_deploy_form_is_asked_of_what_takes_the_argument(kind, deploy):
    cfg = deploy_config(Config(dict(model=dict(type="ImageClassifier", backbone=dict(type=kind, arch="T")))))
    assert cfg.model.backbone.get("deploy") is deploy
