# SPDX-License-Identifier: Apache-2.0
"""Training with less memory: activations that are computed once more in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function of a module without keeping its activations; the backward pass calls it once more."""
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), keep_statistics(module)))


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Leave running statistics alone, so that a batch that passes twice counts once."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    saved = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
