# SPDX-License-Identifier: Apache-2.0
"""Cut feature maps into tiles, and join them again.

Channel c of a feature map belongs to set ``c mod S``. A feature map (N, C, H, W) is cut into th * tw tiles of h * w
pixels; the tiles of all samples and of the C / S channels of a set are the M = N * th * tw * C / S rows that share one
fully connected layer, hence the layout (S, M, h * w).

Where a side of the feature map is not a whole number of tiles, :data:`PAD_MODES` complete the last tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import count_tiles, is_symbolic

# zeros: zeros complete the last tile. shift: the last tile moves back until it lies inside the feature map, where it
# overlaps the one before; from its output, only the pixels outside the overlap are used. A feature map smaller than a
# tile is mirrored.
PAD_MODES = ("zeros", "shift")


def split_tiles(x: Tensor, num_sets: int, h: int, w: int, pad_mode: str = "zeros") -> Tensor:
    """Cut a feature map into tiles, set by set (paper section 3.1).

    A feature map of exactly one tile is not copied: the result is a view.

    Args:
        x: Shape (N, C, H, W).
        num_sets: Number of sets S; divides C.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.
        pad_mode: How to complete the last tiles of a feature map that is not a whole number of tiles, one of
            :data:`PAD_MODES`. Default: "zeros".

    Returns:
        Shape (S, M, h * w).
    """
    n, c, height, width = x.shape
    x = pad_to_tiles(pad_to_tiles(x, 2, h, pad_mode), 3, w, pad_mode)
    cells = x.reshape(n, c // num_sets, num_sets, count_tiles(height, h), h, count_tiles(width, w), w)
    return cells.permute(2, 0, 3, 5, 1, 4, 6).reshape(num_sets, -1, h * w)


def join_tiles(tiles: Tensor, size: tuple[int, int, int, int], h: int, w: int, pad_mode: str = "zeros") -> Tensor:
    """Join tiles to a feature map, the inverse of :func:`split_tiles`.

    Args:
        tiles: Shape (S, M, h * w).
        size: Shape (N, C, H, W) of the feature map; padding is removed.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.
        pad_mode: The mode that the feature map was split with. Default: "zeros".

    Returns:
        Shape (N, C, H, W).
    """
    n, c, height, width = size
    sets, rows, columns = tiles.size(0), count_tiles(height, h), count_tiles(width, w)
    cells = tiles.view(sets, n, rows, columns, c // sets, h, w).permute(1, 4, 0, 2, 5, 3, 6)
    x = cells.reshape(n, c, rows * h, columns * w)
    return crop_padding(crop_padding(x, 2, height, h, pad_mode), 3, width, w, pad_mode)


def pad_to_tiles(x: Tensor, dim: int, side: int, pad_mode: str) -> Tensor:
    """Extend one side of a feature map to whole tiles."""
    size = as_number(x.size(dim))
    if is_symbolic(size) and pad_mode == "shift":
        return x.index_select(dim, padded_positions(size, side, x.device))
    missing = count_tiles(size, side) * side - size
    if not is_symbolic(size) and not missing:
        return x
    if pad_mode == "zeros":
        return F.pad(x, (0, missing) if dim == 3 else (0, 0, 0, missing))
    if size > side:
        return torch.cat([x.narrow(dim, 0, size - side + missing), x.narrow(dim, size - side, side)], dim)
    return x.index_select(dim, mirror(torch.arange(side, device=x.device), size))


def crop_padding(x: Tensor, dim: int, size: int, side: int, pad_mode: str) -> Tensor:
    """Crop one side of a feature map to its size before :func:`pad_to_tiles`."""
    size = as_number(size)
    if is_symbolic(size) and pad_mode == "shift":
        return x.index_select(dim, kept_positions(size, side, x.device))
    if pad_mode == "shift" and size > side and (rest := size % side):
        return torch.cat([x.narrow(dim, 0, size - rest), x.narrow(dim, x.size(dim) - rest, rest)], dim)
    return x.narrow(dim, 0, size)


def mirror(positions: Tensor, size: int) -> Tensor:
    """Mirror positions beyond the end of a line of ``size`` pixels back into it."""
    period = as_tensor(2 * (size - 1), positions).clamp(min=1)
    positions = positions.remainder(period)
    return torch.minimum(positions, period - positions)


def padded_positions(size: torch.SymInt, side: int, device: torch.device) -> Tensor:
    """Return the positions of the pixels that ``shift`` puts into whole tiles, without branches on a symbolic size."""
    positions = torch.arange(count_tiles(size, side) * side, device=device)
    return mirror(positions - tile_shift(positions, size, side), size)


def kept_positions(size: torch.SymInt, side: int, device: torch.device) -> Tensor:
    """Return where in whole tiles the pixels of a feature map are, the inverse of :func:`padded_positions`."""
    positions = torch.arange(size, device=device)
    return positions + tile_shift(positions, size, side)


def tile_shift(positions: Tensor, size: int, side: int) -> Tensor:
    """Return for each position by how much ``shift`` moves its tile back to lie inside the feature map, but not beyond
    its start."""
    starts = positions - positions % side  # a floor division would be exported as nine operators
    return (starts - as_tensor(size - side, positions).clamp(min=0)).clamp(min=0)


def as_number(size: int | torch.SymInt | Tensor) -> int | torch.SymInt:
    """Convert a size, which is a tensor of one element in torch.jit.trace, to a number."""
    return int(size) if isinstance(size, Tensor) else size


def as_tensor(number: int, like: Tensor) -> Tensor:
    """Convert a number to a tensor, with which exporters can compute where the number is symbolic."""
    return torch.scalar_tensor(number, dtype=like.dtype, device=like.device)
