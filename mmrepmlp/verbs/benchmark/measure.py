# SPDX-License-Identifier: Apache-2.0
"""Time calls side by side, in one process, beside a matrix product that shows what the machine can do."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.progress import track

from .hardware import CPU, Hardware

SGEMM_SIDE = 2048


def interleave(
    functions: dict[str, Callable[[], object]], repeats: int, title: str = "", hardware: Hardware = CPU
) -> dict[str, list[float]]:
    """Time functions in interleaved calls, so that drift of the machine affects all of them equally: the seconds of
    each call, by name, without one to warm up."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in track(range(repeats), description=title, transient=True):
        for name, function in functions.items():
            seconds[name].append(hardware.time(function))
    return seconds


def reference_matmuls(dtype: torch.dtype, hardware: Hardware = CPU) -> dict[str, Callable[[], object]]:
    """A square matrix product, the reference, by each library that torch uses for matrix products.

    The faster one depends on the processor: oneDNN or the BLAS that torch was built with, often MKL, may have half the
    rate of the other.
    """
    a, b = torch.randn(2, SGEMM_SIDE, SGEMM_SIDE, dtype=dtype, device=hardware.device)
    image, kernel = a[None, None].permute(0, 3, 1, 2), b[:, :, None, None]
    blas, convolutions = ("cuBLAS", "cuDNN") if hardware.is_gpu else ("BLAS", "oneDNN")
    return {blas: lambda: a @ b, convolutions: lambda: F.conv2d(image, kernel)}
