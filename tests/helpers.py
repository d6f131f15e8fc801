# SPDX-License-Identifier: Apache-2.0
"""What several test modules share: random networks, error measures, and the block once more, written out naively."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.models import RepMLPBlock
from mmrepmlp.verbs.benchmark.report import BenchmarkReport

EXPORTS = hasattr(torch.export.Dim, "DYNAMIC")  # as of torch 2.6; without it, an export says so
needs_export = pytest.mark.skipif(not EXPORTS, reason="export needs torch 2.6")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


class CreatesAFile:
    """Unpickling this runs a command."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def randomize(model: nn.Module, generator: torch.Generator, spread: float = 0.5) -> nn.Module:
    """Give all batch norms random weights and statistics, ``spread`` away from 1 and 0, variances a factor
    ``10 ** (4 * spread)`` from 1."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            weight, bias, mean, exponent = spread * (2 * torch.rand(4, module.num_features, generator=generator) - 1)
            module.weight.data, module.bias.data = 1 + weight, bias
            module.running_mean, module.running_var = mean, 10 ** (4 * exponent)
    return model


def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Give all batch norms the statistics of a batch, as training would."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def render(table: Table, width: int = 120) -> str:
    """A table as it is printed."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def saved(benchmark: BenchmarkReport, folder: Path) -> dict:
    """A benchmark as it is saved."""
    benchmark.save_json(folder / "figures.json")
    return json.loads((folder / "figures.json").read_text())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, over the largest expected value."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def apply_norm(bn: _BatchNorm, x: Tensor) -> Tensor:
    """A batch norm in eval mode on (N, C, H, W), from its definition."""
    mean, var, weight, bias = (t.view(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / torch.sqrt(var + bn.eps) * weight + bias


def source_pixels(size: int, side: int, pad_mode: str) -> list[tuple[np.ndarray, slice]]:
    """Along one side of a map, tile by tile: which pixels it sees (-1: a zero), and which of its outputs count."""
    tiles = []
    for start in range(0, size, side):
        missing = max(start + side - size, 0)
        if missing and pad_mode == "shift" and size > side:
            tiles.append((np.arange(size - side, size), slice(missing, side)))
            continue
        inside = np.arange(size)
        padded = np.pad(
            inside,
            (0, missing),
            **(dict(mode="constant", constant_values=-1) if pad_mode == "zeros" else dict(mode="reflect")),
        )
        tiles.append((padded[start : start + side], slice(0, side - missing)))
    return tiles


def naive_block(block: RepMLPBlock, x: Tensor) -> Tensor:
    """What a block in training form and eval mode computes, one tile and one set at a time."""
    (n, c, height, width), sets, h, w = x.shape, block.num_sharesets, block.h, block.w
    with_zero = F.pad(x, (0, 1, 0, 1))  # the last row and column are what -1 picks
    fc3 = block.fc3.weight.view(sets, h * w, h * w)
    rows = []
    for vertical, kept_rows in source_pixels(height, h, block.pad_mode):
        row = []
        for horizontal, kept_columns in source_pixels(width, w, block.pad_mode):
            tile = with_zero[:, :, torch.from_numpy(vertical)][..., torch.from_numpy(horizontal)]
            out = torch.zeros_like(tile)
            for channel in range(c):
                s = channel % sets
                pixels = tile[:, channel : channel + 1]
                after_fc = (pixels.flatten(1) @ fc3[s].T).view(n, 1, h, w).expand(-1, sets, -1, -1)
                total = apply_norm(block.fc3_bn, after_fc)[:, s]
                for branch in block.local_branches:
                    kernel = branch.conv.weight[s : s + 1]
                    after_conv = F.conv2d(pixels, kernel, padding=kernel.size(-1) // 2).expand(-1, sets, -1, -1)
                    total = total + apply_norm(branch.bn, after_conv)[:, s]
                out[:, channel] = total
            row.append(out[:, :, kept_rows, kept_columns])
        rows.append(torch.cat(row, 3))
    squeeze, excite = block.gp.conv1.conv, block.gp.conv2.conv
    hidden = torch.relu(x.mean((2, 3)) @ squeeze.weight.flatten(1).T + squeeze.bias)
    gate = torch.sigmoid(hidden @ excite.weight.flatten(1).T + excite.bias)
    return torch.cat(rows, 2) * gate[..., None, None]
