# SPDX-License-Identifier: Apache-2.0
"""Configs of the compressing trainings: what they name is there, and their schedules are long enough."""

import math
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, DefaultScope

from mmrepmlp.compression import find_groups
from mmrepmlp.compression.compactor import compactors_in
from mmrepmlp.models import CIFARResNet
from mmrepmlp.verbs.model import build_untrained, count_macs

pytestmark = pytest.mark.slow
FILES = [
    file
    for file in sorted((Path(__file__).parents[2] / "configs/compression").glob("*.py"))
    if file.stem.startswith(("aofp", "csgd", "gsm", "resrep"))
]
IMAGES = dict(in1k=1281167, sheets=10000, cifar10=50000)


class Loop:
    """The length of a training, without its data."""

    def __init__(self, epochs: int, iterations: int) -> None:
        self.iter, self.max_iters, self.train_dataloader = 0, epochs * iterations, range(iterations)


def test_resnet56_has_the_size_of_the_papers():
    cfg = Config.fromfile(FILES[0].with_name("resnet56_1xb64_cifar10.py"))
    model = build_untrained(cfg)
    assert count_macs(model) == 125_747_840
    assert len(find_groups(model)) == 27  # the first convolution of each block
    assert {len(group.writers) for group in find_groups(model, streams=True).values()} == {1, 10}
    with pytest.raises(ValueError, match=r"depth=55: expected 6 n \+ 2 layers"):
        CIFARResNet(55)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_schedule_is_long_enough_for_its_method(file):
    cfg = Config.fromfile(file)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_untrained(cfg)
        images, batch = (next(n for name, n in IMAGES.items() if name in file.stem), cfg.auto_scale_lr.base_batch_size)
        iterations = math.ceil(images / batch)
        run = Loop(cfg.train_cfg.max_epochs, iterations)
        run.model, run.optim_wrapper = model, build_optim_wrapper(model, cfg.optim_wrapper)
        schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
        run.param_schedulers = [
            PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=run.optim_wrapper, epoch_length=iterations))
            for scheduler in schedulers
        ]
        (hook,) = (HOOKS.build(hook) for hook in cfg.custom_hooks)
    hook.before_train(run)
    assert bool(compactors_in(model)) == ("resrep" in file.stem)
