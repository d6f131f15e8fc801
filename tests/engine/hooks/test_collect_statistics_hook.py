# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import train
from tests.fixtures import CONFIG, dump_config


def test_a_plain_network_is_refused(options, tmp_path):
    hook = dict(type="mmrepmlp.CollectStatisticsHook")
    config = dump_config(CONFIG, {**options, "custom_hooks": [hook]}, tmp_path / "config.py")
    with pytest.raises(ValueError, match="insert_bn=True"):
        train(config, work_dir=str(tmp_path))
