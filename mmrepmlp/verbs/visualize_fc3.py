# SPDX-License-Identifier: Apache-2.0
"""Draw the receptive weights of an output pixel, before and after Locality Injection."""

from pathlib import Path

import torch
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from mmrepmlp.checkpoint import atomic_write, load_from_local, unwrap
from mmrepmlp.models import RepMLPBlock
from mmrepmlp.reparam import affine
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model

ROWS = ("fc3 and its batch norm alone", "after Locality Injection")


def visualize_fc3(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    channel_set: int = 0,
    pixel: tuple[int, int] | None = None,
    cfg_options: dict | None = None,
) -> list[float]:
    """Draw rows of the fully connected layers as images, before and after Locality Injection, as in the paper.

    A row holds the weights from all pixels of a tile to one output pixel. The first block of each stage is drawn; each
    image has a separate color scale, symmetric around zero.

    Args:
        config: Config of a model with a RepMLPNet backbone in training form.
        checkpoint: Its checkpoint.
        out: PNG file to write.
        channel_set: Index of the set of channels; clipped to the last one of a stage. Default: 0.
        pixel: Row and column of the output pixel in the first stage's tile. Default: the center.
        cfg_options: Config settings to override, by dotted name. Default: None.

    Returns:
        :func:`fc3_share` of each stage, over all of its blocks.

    Raises:
        ValueError: The model is in deploy form or has no RepMLPNet backbone, or the pixel is not in the tile.
    """
    model = build_model(read_config(config, cfg_options), unwrap(load_from_local(checkpoint)))
    units = getattr(model.backbone, "stages", ())
    stages = [[unit.repmlp_block for unit in stage] for stage in units if hasattr(stage[0], "repmlp_block")]
    if not stages or stages[0][0].deploy:
        raise ValueError(
            f"{config} has no RepMLPNet in training form; in deploy form, the convolutions are fused into fc3. Pass "
            "config and checkpoint from before the conversion."
        )
    first = stages[0][0]
    pixel = (first.h // 2, first.w // 2) if pixel is None else pixel
    if not (0 <= pixel[0] < first.h and 0 <= pixel[1] < first.w):
        raise ValueError(f"pixel={pixel} is outside the tile of {first.h} by {first.w} pixels in the first stage.")
    shares = [fc3_share(*blocks) for blocks in stages]
    firsts = [blocks[0] for blocks in stages]
    draw_columns(firsts, shares, channel_set, (pixel[0] / first.h, pixel[1] / first.w), Path(out))
    return shares


def draw_columns(
    blocks: list[RepMLPBlock], shares: list[float], channel_set: int, place: tuple[float, float], out: Path
) -> None:
    """Draw a column for each block, before on top and after below, and mark the output pixel."""
    figure = Figure(figsize=(3 * len(blocks), 7.6), layout="constrained")
    figure.suptitle("Receptive weights of the marked output pixel\n", fontsize="x-large")
    axes = figure.subplots(2, len(blocks), squeeze=False)
    for axis, name in zip(axes[:, 0], ROWS):
        axis.set_ylabel(name, fontsize="large")
    for stage, (block, share, column) in enumerate(zip(blocks, shares, axes.T)):
        column[0].set_title(f"stage {stage + 1}, tile {block.h} x {block.w}\nfc3 share {share:.3f}")
        y, x = int(place[0] * block.h), int(place[1] * block.w)
        maps = receptive_weights(block, min(channel_set, block.num_sharesets - 1), (y, x))
        limits = [values.abs().max().item() or 1.0 for values in maps]
        width = maps[0].square().mean().sqrt().item() or limits[1]
        # Logarithmic above the size of fc3's weights, since those of the convolutions may be 50 times as large.
        norms = (Normalize(-limits[0], limits[0]), AsinhNorm(width, vmin=-limits[1], vmax=limits[1]))
        ticks = ([-limits[0], 0, limits[0]], [-limits[1], -width, width, limits[1]])
        for axis, values, norm, marks in zip(column, maps, norms, ticks):
            picture = axis.imshow(values.numpy(), cmap="RdBu_r", norm=norm)
            axis.plot(x, y, marker="s", markersize=5, markerfacecolor="none", markeredgecolor="black")
            axis.set(xticks=[], yticks=[])
            bar = figure.colorbar(picture, ax=axis, location="bottom", shrink=0.9)
            bar.set_ticks(marks, labels=[f"{mark:.2g}" for mark in marks], fontsize="small")
            bar.minorticks_off()
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def receptive_weights(block: RepMLPBlock, channel_set: int, pixel: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the receptive weights (h, w) of an output pixel for a set of channels.

    The first are those of fc3 and its batch norm alone, the second are fused with the local branches.
    """
    alone, fused = alone_and_fused(block)
    return alone[channel_set][pixel], fused[channel_set][pixel]


def fc3_share(*blocks: RepMLPBlock) -> float:
    """Compute the share of a block's weights that comes from fc3 rather than from the convolutions.

    Let A be the weights of fc3 fused with its batch norm, and B those of the local branches fused with theirs, as a
    matrix of the same shape, so that Locality Injection yields A + B. The share is ``|A|^2 / (|A|^2 + |B|^2)``, in
    squared Frobenius norms; near 0, the block is a convolution. Initial weights count like any others: the effect of
    training is the difference to the share at its start.

    Args:
        *blocks: Blocks in training form; both norms are taken over all of them, e.g. over those of a stage.

    Returns:
        A number from 0 (only the convolutions, or no weights at all) to 1 (only fc3).

    Raises:
        ValueError: A block is in deploy form.
    """
    if any(block.deploy for block in blocks):
        raise ValueError("The blocks are in deploy form, with the convolutions fused into fc3: pass training form.")
    pairs = [alone_and_fused(block) for block in blocks]
    fc3 = sum(alone.square().sum().item() for alone, _ in pairs)
    local = sum((fused - alone).square().sum().item() for alone, fused in pairs)
    return fc3 / (fc3 + local) if fc3 else 0.0


@torch.no_grad()
def alone_and_fused(block: RepMLPBlock) -> tuple[Tensor, Tensor]:
    """Return the weights (S, h, w, h, w) from input to output pixels, without and with local branches, in float64."""
    shape = (block.num_sharesets, block.h, block.w, block.h, block.w)
    scale, _ = affine(block.fc3_bn)
    alone = block.fc3.weight.double().view(shape) * scale.view(-1, 1, 1, 1, 1)
    return alone, block.equivalents()["fc3"].weight.view(shape)
