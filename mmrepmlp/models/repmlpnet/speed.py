# SPDX-License-Identifier: Apache-2.0
"""Faster ways to compute the same numbers in eager mode.

The layers implement the plain formula. Compilers, exporters and tracers see that formula, and so do hooks: whole
feature maps, each module called once. Where none of them is active, the functions here choose an equivalent computation
that suits the cache and the libraries of the machine. The environment variable ``MMREPMLP_PLAIN=1`` turns that off.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..common import is_plain

# Tiles of at least this many pixels are multiplied by oneDNN, where it is available. On a Zen 4 it takes twice as long
# as a batched product of BLAS for tiles of 14 x 14, as long at 28 to 32 pixels a side, and 0.6 times as long at 56.
LARGE_TILE = 512
# Largest hidden activation of one pass without gradients, in elements: 12 MB in float32. On a Zen 4 with 32 MB of
# cache, batches of eight take up to 4 % longer with half of it; with a multiple they are no faster, but memory in use
# grows, and above 32 MB glibc returns freed memory to the system, so that each pass begins with page faults.
HIDDEN_ELEMENTS = 3 * 2**20


def multiply_tiles(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Multiply tiles (S, M, P) by matrices (S, P, P), ``tiles @ matrices.mT``, by the faster of torch's libraries."""
    if tiles.size(-1) >= LARGE_TILE and suits_onednn(tiles):
        return multiply_by_onednn(tiles, matrices)
    return torch.bmm(tiles, matrices.transpose(1, 2))


def suits_onednn(tiles: Tensor) -> bool:
    """Whether oneDNN's convolution is the faster matrix product for these tiles."""
    return (
        not is_plain()  # first, since torch.compile breaks the graph at a call of mkldnn.is_available
        and tiles.device.type == "cpu"
        and tiles.numel() > 0
        and tiles.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def multiply_by_onednn(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Multiply tiles as :func:`multiply_tiles` does with oneDNN, which eager PyTorch offers for float32 only through
    convolutions.

    The large operand, a matrix of P rows, serves as the image, P pixels of P channels as it lies in memory; each tile
    serves as a 1x1 kernel. The other way round, oneDNN would rearrange the large operand in each call. In memory, the
    rows of the result come first, as in a feature map of one tile.
    """
    products = [
        F.conv2d(matrix[None, None].permute(0, 3, 1, 2), rows[:, :, None, None])[0, :, 0]
        for rows, matrix in zip(tiles, matrices)
    ]
    return products[0][None] if len(products) == 1 else torch.stack(products, 1).transpose(0, 1)


def run_in_slices(function: Callable[..., Tensor], x: Tensor, width: int, *modules: nn.Module) -> Tensor:
    """Call a pointwise function on a feature map, on a CPU in slices whose hidden activations fit into the cache.

    On a GPU, many small calls would take longer.

    Args:
        function: Maps (n, C, h, W) to the same shape, each pixel separately, and writes to ``out`` if that is set.
        x: Shape (N, C, H, W).
        width: Hidden elements for each element of ``x``.
        *modules: The modules that the function calls. With gradients, in training mode, while a graph is traced, or if
            one of them has forward hooks, there is one call on the whole feature map.

    Returns:
        Shape (N, C, H, W).
    """
    whole = torch.is_grad_enabled() or is_plain() or any(module.training for module in modules)
    whole = whole or x.device.type != "cpu" or has_forward_hooks(*modules)
    if whole or x[:1].numel() * x.size(0) * width <= HIDDEN_ELEMENTS:
        return function(x)
    result = torch.empty_like(x)
    for part, out in zip(split(x, width), split(result, width)):
        function(part, out=out)
    return result


def split(x: Tensor, width: int) -> Iterator[Tensor]:
    """Split a feature map into views whose hidden activations fit into the cache: some samples, or some rows of one."""
    samples = HIDDEN_ELEMENTS // (x.shape[1:].numel() * width)
    if samples:
        return iter(x.split(samples))
    rows = max(1, HIDDEN_ELEMENTS // (x.size(1) * x.size(3) * width))
    return (part for sample in x.split(1) for part in sample.split(rows, 2))


def has_forward_hooks(*modules: nn.Module) -> bool:
    """Whether these modules or their children have forward hooks, global ones included."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks for module in modules for m in module.modules())
