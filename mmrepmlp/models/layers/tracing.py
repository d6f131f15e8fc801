# SPDX-License-Identifier: Apache-2.0
import torch


def is_tracing() -> bool:
    """Whether a compiler, an exporter or a tracer is recording the computation.

    What makes eager mode fast on one machine has no place in a graph that another one optimizes.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether an exporter leaves this number open: no branch may depend on its value then."""
    return isinstance(size, torch.SymInt)
