# SPDX-License-Identifier: Apache-2.0
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .distributed import setup_distributed


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, with the distributed setup for its launcher and a check of what it loads."""
    setup_distributed(cfg)
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    if cfg.get("check_weights", True):
        runner.register_hook(dict(type="mmrepmlp.CheckWeightsHook"))
        runner.logger.info(
            "CheckWeightsHook is added: a checkpoint without weights stops the run; check_weights=False in the config "
            "turns it off."
        )
    return runner
