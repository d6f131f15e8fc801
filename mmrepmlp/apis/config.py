# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config


def read_config(config: str | Path) -> Config:
    """Read a config file, or a config of an installed package.

    Args:
        config: Path of the file, or ``package::path``, e.g. ``mmdet::atss/atss_r50_fpn_1x_coco.py``.
    """
    return get_config(str(config)) if "::" in str(config) else Config.fromfile(config)
