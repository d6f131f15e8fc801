# SPDX-License-Identifier: Apache-2.0
"""Sheets of several real handwritten digits in noise, of which only one counts: a classifier has to know positions."""

from pathlib import Path

import mmcv
import numpy as np

from mmrepmlp.checkpoint import atomic_folder, check_overwrite

from .compose import compose_all, warp_scan

COUNTS = dict(train=10000, val=1000)
SIDE = 64  # of a sheet, in pixels; it has two by two fields
DIGIT = (26, 34)  # side of a scan, in pixels of the sheet
JITTER = 3  # pixels, of a digit around the middle of its field
TURN = 15  # degrees, in both directions
INK = (90, 150)  # grey levels, over the paper's
PAPER = 60
NOISE = 60  # standard deviation in grey levels


def compose_sheet(scans: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """Compose a sheet (SIDE, SIDE), uint8, of two by two digits in noise, whose class is the digit at the top left.

    Arguments are those of :func:`~mmrepmlp.datasets.scenes.compose_scene`.
    """
    sheet = generator.normal(PAPER, NOISE, (SIDE, SIDE))
    choices = generator.integers(len(scans), size=4)
    for field, choice in enumerate(choices):
        middle = SIDE * (0.5 + np.array([field % 2, field // 2])) / 2
        center = middle + generator.uniform(-JITTER, JITTER, 2)
        side, angle = generator.uniform(*DIGIT), generator.uniform(-TURN, TURN)
        sheet += generator.uniform(*INK) * warp_scan(scans[choice], (SIDE, SIDE), center, side, angle)
    return np.rint(sheet).clip(0, 255).astype(np.uint8), int(labels[choices[0]])


def write_sheets(out_dir: str | Path, overwrite: bool = False, counts: dict = COUNTS) -> dict[str, int]:
    """Write sheets in the ImageNet folder layout, ``{train,val}/{0..9}/*.png``.

    ``counts`` are the numbers of sheets in ``train`` and ``val``, which use disjoint sets of scans; they are returned.
    """
    check_overwrite(out_dir, overwrite=overwrite)
    with atomic_folder(out_dir, durable=False) as folder:
        for split, number in counts.items():
            for name, (sheet, label) in compose_all(compose_sheet, split, number):
                mmcv.imwrite(sheet, str(folder / split / str(label) / f"{name}.png"))
    return dict(counts)
