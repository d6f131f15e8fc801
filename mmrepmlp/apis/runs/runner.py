# SPDX-License-Identifier: Apache-2.0
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .distributed import setup_distributed


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, with the distributed setup for its launcher."""
    setup_distributed(cfg)
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
