# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed the random number generators before each epoch, so that a resumed training equals an uninterrupted one.

    MMEngine's checkpoints lack the state of the random number generators. The seed of an epoch is the run's seed plus
    the number of the epoch. Data loader workers have their own generators, which are re-seeded only with
    ``persistent_workers=False``. The hook does nothing in iteration-based training.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the generators before the data loader uses them."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            # Not runner.deterministic, which FlexibleRunner has and never sets.
            options = {name: runner._randomness_cfg.get(name, False) for name in ("deterministic", "diff_rank_seed")}
            set_random_seed(runner.seed + runner.epoch, **options)
