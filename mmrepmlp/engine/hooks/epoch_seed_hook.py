# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Draw random numbers that depend on the epoch alone, so that a resumed training repeats an undisturbed one.

    A checkpoint of MMEngine holds no state of the random number generators. This hook seeds them anew before each
    epoch, with the run's seed plus the number of the epoch. Workers of the data loader have generators of their own:
    with ``persistent_workers=False`` they are seeded anew as well. Does nothing in training by iterations.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the generators, before the data loader draws from them."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            differs = runner._randomness_cfg.get("diff_rank_seed", False)
            set_random_seed(runner.seed + runner.epoch, runner.deterministic, differs)
