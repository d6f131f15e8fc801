# SPDX-License-Identifier: Apache-2.0
"""What all images that are composed of scanned digits share."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import Pool

import cv2
import numpy as np
from rich.progress import track

from .digits import split_digits

SPLITS = ("train", "val")


def warp_scan(
    scan: np.ndarray, size: tuple[int, int], center: Sequence[float], side: float, angle: float
) -> np.ndarray:
    """Coverage by ink, from 0 to 1 and of shape ``size`` (height, width), of a scan that is enlarged to a side in
    pixels around a center (column, row), and turned by degrees."""
    middle = (len(scan) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, side / len(scan))
    matrix[:, 2] += center[0] - middle, center[1] - middle
    ink = cv2.warpAffine(scan.astype(np.float32) / 255, matrix, size[::-1], flags=cv2.INTER_CUBIC)
    return (3 * ink - 0.5).clip(0, 1)  # steeper, for edges as sharp as those of ink


def compose_all(compose: Callable, split: str, number: int) -> Iterator[tuple[str, object]]:
    """Compose the images of a split, each with a name, on all cores; image i does not depend on their number.

    ``compose`` is a function of scans, their digits and a random generator.
    """
    with Pool(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:  # Ctrl-C ends this process
        composed = pool.imap(partial(compose_indexed, compose, split), range(number), chunksize=16)
        for index, result in enumerate(track(composed, f"images, {split}", number, transient=True)):
            yield f"{index:05d}", result


def compose_indexed(compose: Callable, split: str, index: int) -> object:
    return compose(*split_digits()[split], np.random.default_rng([SPLITS.index(split), index]))
