# SPDX-License-Identifier: Apache-2.0
"""Time calls in one process, interleaved with a matrix product as a reference for the speed of the machine."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.progress import track

from .hardware import CPU, Hardware

SGEMM_SIDE = 2048  # rows and columns of the reference matrices


def interleave(
    functions: dict[str, Callable[[], object]], repeats: int, title: str = "", hardware: Hardware = CPU
) -> dict[str, list[float]]:
    """Time functions in interleaved calls, so that drift of the machine affects all of them equally.

    Returns:
        Seconds of each call, by name, after one warm-up call.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in track(range(repeats), description=title, transient=True):
        for name, function in functions.items():
            seconds[name].append(hardware.time(function))
    return seconds


def reference_matmuls(dtype: torch.dtype, hardware: Hardware = CPU) -> dict[str, Callable[[], object]]:
    """Return functions that compute the reference, a square matrix product, in each library that torch uses for it.

    Which one is faster depends on the processor: either of oneDNN and the BLAS of torch, often MKL, may reach only half
    the speed of the other.
    """
    a, b = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE, dtype=dtype, device=hardware.device)
    image, kernel = a[None, None].permute(0, 3, 1, 2), b[:, :, None, None]
    blas, convolutions = ("cuBLAS", "cuDNN") if hardware.is_gpu else ("BLAS", "oneDNN")
    return {blas: lambda: a @ b, convolutions: lambda: F.conv2d(image, kernel)}
