# SPDX-License-Identifier: Apache-2.0
from functools import partial

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class CheckLastBatchHook(Hook):
    """Stop training at the start if it would fail on the last batch of the epoch.

    If that has a single image, a batch norm after a global average has one number for each channel, and raises an
    error. The first batch shows whether there is such a norm.
    """

    def __init__(self) -> None:
        self.handles: list = []
        self.norm: str | None = None

    def before_train(self, runner: Runner) -> None:
        """Watch the batch norms if the last batch has one image."""
        if not has_single(runner.train_dataloader, runner.max_iters):
            return
        size, synced = runner.train_dataloader.batch_sampler.batch_size, get_world_size() > 1

        def note(name: str, norm: nn.Module, inputs: tuple[Tensor]) -> None:
            if norm.training and len(inputs[0]) == size and inputs[0][0, 0].numel() == 1:
                self.norm = name

        for name, norm in runner.model.named_modules():
            if isinstance(norm, _BatchNorm) and not (synced and isinstance(norm, nn.SyncBatchNorm)):
                self.handles.append(norm.register_forward_pre_hook(partial(note, name.removeprefix("module."))))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Stop training if there is such a norm."""
        while self.handles:
            self.handles.pop().remove()
        if self.norm:
            setting = "drop_last" if runner.train_dataloader.batch_size else "batch_sampler.drop_last"
            raise MMRepMLPError(
                f"The last batch of each epoch will have one image, from which model.{self.norm} cannot compute "
                f"statistics: its feature map is 1 x 1. Set train_dataloader.{setting}=True, or another batch_size."
            )


def has_single(loader: DataLoader, iterations: int) -> bool:
    """Whether training reaches a batch of one image after larger ones."""
    batches = loader.batch_sampler
    size, sampler = getattr(batches, "batch_size", None), getattr(batches, "sampler", None)
    if not size or size == 1 or getattr(batches, "drop_last", True) or isinstance(sampler, InfiniteSampler):
        return False
    return len(sampler) % size == 1 and iterations >= len(loader)
