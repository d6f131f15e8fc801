# SPDX-License-Identifier: Apache-2.0
"""Resample the fully connected layers of a state dict to another tile size."""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrepmlp.reparam import to_float64

FC3 = re.compile(r"^stages\.(\d+)\.\d+\.repmlp_block\.fc3\.(weight|bias)$")
Tile = tuple[int, int]  # height and width in pixels


def resample_tiles(
    state: dict[str, Tensor], tiles: list[Tile], noted: list[Tile] = ()
) -> tuple[dict[str, Tensor], dict[int, tuple[Tile, Tile]]]:
    """Resample every ``fc3`` whose tile size differs from the model's.

    Local branches do not depend on the tile size and stay unchanged.

    Args:
        state: A backbone's state dict with our names, in any form.
        tiles: The model's tile size (h, w) in pixels for each stage.
        noted: Those of the state dict, from its metadata. Default: none, they are inferred.

    Returns:
        The state dict, and the tile size of the state dict and the model for each stage with such a layer.
    """
    resampled, sizes = {}, {}
    for name, value in state.items():
        match = FC3.match(name)
        weight = state.get(name.replace(".bias", ".weight"))
        if match and int(match[1]) < len(tiles) and weight is not None and weight.dim() > 1:
            stage = int(match[1])
            old, new = infer_tile(name, weight.size(1), tiles[stage], dict(enumerate(noted)).get(stage)), tiles[stage]
            if old != new:
                value = resample_weight(value, old, new) if match[2] == "weight" else resample_bias(value, old, new)
            sizes[stage] = old, new
        resampled[name] = value
    return resampled, sizes


def infer_tile(name: str, pixels: int, like: Tile, noted: Tile | None = None) -> Tile:
    """Infer height and width of a tile from its number of pixels: as noted, as the model's, of the same aspect ratio,
    or square."""
    h, w = like
    scale = math.sqrt(pixels / (h * w))
    for tile in (noted or like, like, (round(h * scale), round(w * scale)), (math.isqrt(pixels),) * 2):
        if tile[0] * tile[1] == pixels:
            return tile
    raise ValueError(
        f"{name} is for tiles of {pixels} pixels, which are neither square nor of the aspect ratio {h}:{w} of the "
        "model's tiles. Build the model with the img_size of the checkpoint."
    )


def note_tiles(state: Mapping[str, Tensor], prefix: str, tiles: list[Tile]) -> None:
    """Write tile sizes into the metadata of a state dict: weights for 8x16 and for 16x8 pixels have the same shape."""
    if hasattr(state, "_metadata"):
        state._metadata[prefix[:-1]]["tiles"] = [list(tile) for tile in tiles]


def noted_tiles(metadata: Mapping, state: Mapping[str, Tensor] = MappingProxyType({})) -> list[Tile]:
    """Return the tile sizes that :func:`note_tiles` wrote into the metadata of the module that loads, or into the only
    notes of a whole model's state dict; none if there is anything else."""
    found = [notes["tiles"] for notes in getattr(state, "_metadata", {}).values() if "tiles" in notes]
    tiles = metadata.get("tiles", found[0] if len(found) == 1 else ())
    pairs = [tuple(tile) for tile in tiles if isinstance(tile, (list, tuple))] if isinstance(tiles, list) else []
    return [] if any(len(pair) != 2 or not all(isinstance(n, int) for n in pair) for pair in pairs) else pairs


def resample_noted(state: dict[str, Tensor], prefix: str, noted: list[Tile], tile: Tile) -> None:
    """Resample one layer of a state dict, in place, if its metadata notes another tile size."""
    weight = state.get(f"{prefix}weight")
    if noted and noted != [tile] and weight is not None and weight.shape[1:] == (math.prod(noted[0]), 1, 1):
        for name, resample in (("weight", resample_weight), ("bias", resample_bias)):
            if prefix + name in state:
                state[prefix + name] = resample(state[prefix + name], noted[0], tile)


def resample_weight(weight: Tensor, old: Tile, new: Tile) -> Tensor:
    """Resample a fully connected layer (S * P, P, 1, 1) over the P pixels of a tile: a linear operator on a grid.

    The new layer is the old one between two resampling matrices. One interpolates linearly from the smaller grid to the
    larger; the other is its pseudo-inverse, so that a round trip changes nothing and a larger tile computes what the
    smaller one did. Both map a constant image to itself, which preserves the response to it.
    """
    pixels = old[0] * old[1]
    matrices = to_float64(weight).view(-1, pixels, pixels)
    matrices = resize_matrix(old, new).to(matrices) @ matrices @ resize_matrix(new, old).to(matrices)
    return matrices.reshape(-1, new[0] * new[1], 1, 1).to(weight)


def resample_bias(bias: Tensor, old: Tile, new: Tile) -> Tensor:
    """Resample the bias (S * P,) of a fully connected layer over tiles to (S * P',)."""
    images = to_float64(bias).view(-1, old[0] * old[1])
    return (images @ resize_matrix(old, new).T.to(images)).flatten().to(bias)


def resize_matrix(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Return the matrix (h' * w', h * w), float64, that resizes an image of h by w pixels; its rows sum to 1."""
    rows, columns = (resize_matrix_1d(*sides) for sides in zip(source, target))
    return torch.einsum("ai,bj->abij", rows, columns).reshape(target[0] * target[1], -1)


def resize_matrix_1d(source: int, target: int) -> Tensor:
    """Return the matrix (target, source), float64, that resizes a row of pixels: up by interpolation, down by the
    inverse."""
    if source > target:
        return torch.linalg.pinv(resize_matrix_1d(target, source))
    line = torch.eye(source, dtype=torch.float64)[None]  # each pixel alone, as a channel
    return F.interpolate(line, target, mode="linear", align_corners=False)[0].T
