# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor


def is_tracing() -> bool:
    """Whether a compiler, an exporter or a tracer is recording the computation.

    What makes eager mode fast on one machine has no place in a graph that another one optimizes.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether an exporter leaves this number open: no branch may depend on its value then."""
    return isinstance(size, torch.SymInt)


def multiply_add(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """``x * factor + addend``, broadcast; in eager mode in one pass over the memory."""
    if is_tracing():  # compilers fuse it themselves, and torch 2.6 records no addcmul of symbolic sizes
        return x * factor + addend
    return torch.addcmul(addend, x, factor)
