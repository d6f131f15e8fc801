# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import train
from tests.fixtures import CONFIG, ROOT, dump_config

AWARE = ROOT / "configs/quantization/repmlpnet-mini_qat_1xb64_digits-64px.py"


def test_an_epoch_that_never_comes_is_refused(options, tmp_path):
    config = dump_config(AWARE, {**options, "custom_hooks.0.begin": 2}, tmp_path / "config.py")
    with pytest.raises(ValueError, match="begin=2, but training is over after 2 epochs"):
        train(config, work_dir=str(tmp_path))


@pytest.mark.parametrize(
    "backbone, advice",
    [
        ({}, "Write type='mmrepmlp.QuantizedRepMLPNet'"),
        (dict(_delete_=True, type="ResNet", depth=18), r"Only RepMLPNet trains for int8\. .* --precision int8"),
    ],
)
def test_a_plain_network_is_refused(backbone, advice, options, tmp_path):
    settings = {**options, "custom_hooks": [dict(type="mmrepmlp.FakeQuantizeHook")], "model.backbone": backbone}
    config = dump_config(CONFIG, settings, tmp_path / "config.py")
    with pytest.raises(ValueError, match=f"the model has no QuantizedRepMLPNet. {advice}"):
        train(config, work_dir=str(tmp_path))
