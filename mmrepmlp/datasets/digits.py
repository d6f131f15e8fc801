# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits of scikit-learn, real images that need no download."""

from functools import cache
from pathlib import Path

import mmcv
import numpy as np

from mmrepmlp.checkpoint import atomic_folder, check_overwrite

HELD_OUT = 360
SPLIT_SEED = 0


@cache
def split_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Load the digits and split them, always in the same way and stratified by class.

    Returns:
        For ``train`` and ``val``: the images, shape (n, 8, 8), uint8 from 0 (paper) to 255 (ink), and their digits.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("The digits are part of scikit-learn: pip install scikit-learn.") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, val, train_labels, val_labels = train_test_split(
        images, digits.target, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=digits.target
    )
    return dict(train=(train, train_labels), val=(val, val_labels))


def write_digits(out_dir: str | Path, overwrite: bool = False) -> dict[str, int]:
    """Write the digits in the ImageNet folder layout, ``{train,val}/{0..9}/*.png``, and return the number of each
    split."""
    counts = {}
    check_overwrite(out_dir, overwrite=overwrite)
    with atomic_folder(out_dir, durable=False) as folder:
        for split, (images, labels) in split_digits().items():
            for index, (image, label) in enumerate(zip(images, labels)):
                mmcv.imwrite(image, str(folder / split / str(label) / f"{index:04d}.png"))
            counts[split] = len(images)
    return counts
