# SPDX-License-Identifier: Apache-2.0
"""From feature maps to tiles and back.

Channel c of a map belongs to set ``c mod S``. A map (N, C, H, W) is cut into th * tw tiles of h * w pixels; the tiles
of all samples and of the C / S channels of a set are the M = N * th * tw * C / S rows that share one fully connected
layer, hence the layout (S, M, h * w).
"""

from torch import Tensor

from .conv import pad_to_multiple


def split_tiles(x: Tensor, num_sets: int, h: int, w: int) -> Tensor:
    """Cut a map into tiles, set by set (paper section 3.1).

    A map that is no whole number of tiles is padded with zeros at the bottom and the right. A map of exactly one tile
    is not copied: the result is a view.

    Args:
        x: Shape (N, C, H, W).
        num_sets: Number of sets S that the channels are dealt to.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.

    Returns:
        Shape (S, M, h * w).
    """
    x = pad_to_multiple(x, h, w)
    n, c, height, width = x.shape
    cells = x.reshape(n, c // num_sets, num_sets, height // h, h, width // w, w)
    return cells.permute(2, 0, 3, 5, 1, 4, 6).reshape(num_sets, -1, h * w)


def join_tiles(tiles: Tensor, size: tuple[int, int, int, int], h: int, w: int) -> Tensor:
    """Put tiles back together, the inverse of :func:`split_tiles`.

    Args:
        tiles: Shape (S, M, h * w).
        size: The map's (N, C, H, W); what padding added beyond it is cropped.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.

    Returns:
        Shape (N, C, H, W).
    """
    n, c, height, width = size
    sets, rows, columns = tiles.size(0), -(-height // h), -(-width // w)
    cells = tiles.view(sets, n, rows, columns, c // sets, h, w).permute(1, 4, 0, 2, 5, 3, 6)
    return cells.reshape(n, c, rows * h, columns * w)[..., :height, :width]
