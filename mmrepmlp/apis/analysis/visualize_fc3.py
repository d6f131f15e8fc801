# SPDX-License-Identifier: Apache-2.0
"""Visualize the receptive weights of an output pixel, before and after Locality Injection."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmrepmlp.apis.config import read_config
from mmrepmlp.apis.model import build_model
from mmrepmlp.checkpoint import atomic_write, load_from_local, unwrap
from mmrepmlp.models import RepMLPBlock
from mmrepmlp.reparam import scale_and_shift


def visualize_fc3(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    channel_set: int = 0,
    pixel: tuple[int, int] | None = None,
) -> None:
    """Draw rows of the fully connected layers as maps, before and after Locality Injection, as in the paper.

    A row holds the weights of all pixels of a tile for one output pixel. The first block of each stage is drawn; both
    maps of a stage share a colour scale that is symmetric around zero.

    Args:
        config: Config of a model with a RepMLPNet backbone in training form.
        checkpoint: Its checkpoint.
        out: Picture to write, PNG.
        channel_set: Index of the set of channels; clipped to the last one of a stage. Default: 0.
        pixel: Row and column of the output pixel in the first stage's tile. Default: the center.

    Raises:
        ValueError: The model is in deploy form or has no RepMLPNet backbone, or the pixel is not in the tile.
    """
    model = build_model(read_config(config), unwrap(load_from_local(checkpoint)))
    stages = getattr(model.backbone, "stages", ())
    blocks = [stage[0].repmlp_block for stage in stages if hasattr(stage[0], "repmlp_block")]
    if not blocks or blocks[0].deploy:
        raise ValueError(
            f"{config} has no RepMLPNet in training form: in deploy form the convolutions are part of fc3. Pass the "
            "config and checkpoint from before the conversion."
        )
    first = blocks[0]
    pixel = (first.h // 2, first.w // 2) if pixel is None else pixel
    if not (0 <= pixel[0] < first.h and 0 <= pixel[1] < first.w):
        raise ValueError(f"pixel={pixel} is outside the tile of {first.h} by {first.w} pixels in the first stage.")
    draw_columns(blocks, channel_set, (pixel[0] / first.h, pixel[1] / first.w), Path(out))


def draw_columns(blocks: list[RepMLPBlock], channel_set: int, place: tuple[float, float], out: Path) -> None:
    """Draw a column for each block: before on top, after below, with the output pixel marked."""
    figure = Figure(figsize=(2.8 * len(blocks), 5.8), layout="constrained")
    axes = figure.subplots(2, len(blocks), squeeze=False)
    for stage, (block, column) in enumerate(zip(blocks, axes.T)):
        y, x = int(place[0] * block.h), int(place[1] * block.w)
        maps = receptive_weights(block, min(channel_set, block.num_sharesets - 1), (y, x))
        limit = max(m.abs().max().item() for m in maps)
        for axis, values, name in zip(column, maps, ("before", "after")):
            picture = axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.plot(x, y, marker="s", markersize=5, markerfacecolor="none", markeredgecolor="black")
            axis.set(xticks=[], yticks=[], title=f"stage {stage + 1}, {name}, {block.h} x {block.w}")
        figure.colorbar(picture, ax=list(column), location="bottom", shrink=0.8)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


@torch.no_grad()
def receptive_weights(block: RepMLPBlock, channel_set: int, pixel: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Receptive weights of an output pixel: of the layer and its batch norm alone, and with the local branches.

    Args:
        block: A block in training form.
        channel_set: Index of the set of channels, below S.
        pixel: Row and column of the output pixel in the tile.

    Returns:
        Two maps of shape (h, w), float64.
    """
    shape = (block.num_sharesets, block.h, block.w, block.h, block.w)
    scale, _ = scale_and_shift(block.fc3_bn)
    alone = block.fc3.weight.double().view(shape) * scale.view(-1, 1, 1, 1, 1)
    merged = block.get_equivalent_fc3()[0].view(shape)
    return alone[channel_set][pixel], merged[channel_set][pixel]
