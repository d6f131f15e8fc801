# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config
from mmengine.model import PretrainedInit

from mmrepmlp.models import RepMLPNet
from mmrepmlp.quantization import QuantizedRepMLPNet
from mmrepmlp.verbs.model import build_untrained, deploy_config
from tests.conftest import TINY

PRETRAINED = dict(type="Pretrained", checkpoint="missing.pth")
NORMAL = dict(type="Normal", layer="Linear")


@pytest.mark.parametrize(
    "init, kept",
    [
        (PRETRAINED, None),
        (dict(type=PretrainedInit, checkpoint="missing.pth"), None),
        ([PRETRAINED], None),
        ([NORMAL, PRETRAINED], [NORMAL]),
        (NORMAL, NORMAL),
    ],
)
def test_weights_that_a_config_loads_are_left_out_of_its_deploy_form(init, kept):
    backbone = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, init_cfg=init)
    cfg = Config(dict(model=dict(type="mmpretrain.ImageClassifier", backbone=backbone), default_scope="mmpretrain"))
    deploy = deploy_config(cfg)
    assert deploy.model.backbone.get("init_cfg") == kept
    assert deploy.model.backbone.deploy
    build_untrained(deploy).init_weights()
    assert cfg.model.backbone.init_cfg == init


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
    model = dict(type="ImageClassifier", backbone=dict(type=kind, arch="T"))
    cfg = deploy_config(Config(dict(model=model, default_scope="mmpretrain")))
    assert cfg.model.backbone.get("deploy") is deploy
