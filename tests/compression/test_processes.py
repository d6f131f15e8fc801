# SPDX-License-Identifier: Apache-2.0
"""Two processes with half of each batch move as one with all of it does."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from mmrepmlp.compression import AOFPHook, CSGDHook, GSMHook, ResRep, ResRepHook
from tests.compression.toy import runner, samples
from tests.end_to_end.processes import start

pytestmark = pytest.mark.slow
STEPS = 400
HOOKS = dict(
    csgd=lambda: CSGDHook(strength=2.0),
    gsm=lambda: GSMHook(0.2),
    aofp=lambda: AOFPHook(start=0, per_half=6, threshold=0.5, target=0.6),
    resrep=lambda: ResRepHook(target=0.5, lr=0.1, lasso=1e-2, momentum=0.9, start=40, interval=10, step=2),
)


def train(kind: str, folder: str, rank: int, size: int) -> None:
    """Train on a rank's share of each batch, in eval mode: statistics of a batch are each process's own."""
    torch.set_num_threads(1)
    if size > 1:
        store = dist.FileStore(f"{folder}/store", size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.manual_seed(0)
    run = runner(Path(folder, f"{size}-{rank}"), None, epochs=STEPS // 4 * size)
    run.model = ResRep(dict(type="ToyClassifier")) if kind == "resrep" else run.model
    model, hook = run.model.double().eval(), HOOKS[kind]()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.2)
    run.optim_wrapper = run.build_optim_wrapper(dict(optimizer=optimizer))
    schedule = dict(type="LinearLR", start_factor=1, end_factor=0, end=STEPS, by_epoch=False)
    (scheduler,) = run.param_schedulers = run.build_param_scheduler(schedule)
    hook.before_train(run)
    called = DistributedDataParallel(model) if size > 1 else model
    for step in range(STEPS):
        batch = samples()[step % 4 * 16 :][:16][rank::size]
        images = torch.stack([sample["inputs"] for sample in batch]).double()
        labels = torch.stack([sample["labels"] for sample in batch])
        if isinstance(hook, AOFPHook):
            hook.listening = True  # as in training mode
        optimizer.zero_grad()
        called(images, labels, mode="loss")["loss"].backward()
        optimizer.step()
        scheduler.step()
        run.train_loop._iter += 1
    torch.save(dict(model=model.state_dict(), state=hook.state()), f"{folder}/{size}-{rank}.pth")
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", HOOKS)
def test_two_processes_move_as_one(kind, tmp_path):
    processes = [start(train, kind, str(tmp_path), rank, size) for rank, size in ((0, 1), (0, 2), (1, 2))]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    one, *two = (torch.load(tmp_path / f"{name}.pth", weights_only=False) for name in ("1-0", "2-0", "2-1"))
    for other in two:
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    moved = one["model"]["conv1.weight"]
    assert isinstance(moved, torch.Tensor) and not torch.equal(moved, nn.init.zeros_(moved.clone()))
