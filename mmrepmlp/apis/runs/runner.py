# SPDX-License-Identifier: Apache-2.0
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .distributed import setup_distributed


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config names, ready to run with the other processes of its launcher."""
    setup_distributed(cfg)
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
