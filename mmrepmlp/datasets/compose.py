# SPDX-License-Identifier: Apache-2.0
"""Compose images of scanned digits."""

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
    """Enlarge and rotate a scan.

    Args:
        scan: The scan, shape (n, n), from 0 (paper) to 255 (ink).
        size: Height and width of the result in pixels.
        center: Column and row of the scan's center in the result.
        side: Side of the scan in the result, in pixels.
        angle: Rotation in degrees.

    Returns:
        Coverage of each pixel by ink, from 0 to 1.
    """
    middle = (len(scan) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, side / len(scan))
    matrix[:, 2] += center[0] - middle, center[1] - middle
    ink = cv2.warpAffine(scan.astype(np.float32) / 255, matrix, size[::-1], flags=cv2.INTER_CUBIC)
    return (3 * ink - 0.5).clip(0, 1)  # steeper, for edges as sharp as those of ink


def compose_all(compose: Callable, split: str, number: int) -> Iterator[tuple[str, object]]:
    """Yield the names and images of a split, composed on all cores; image i does not depend on the number of images.

    ``compose`` is a function of scans, their digits and a random generator.
    """
    with Pool(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:  # Ctrl-C ends this process
        composed = pool.imap(partial(compose_indexed, compose, split), range(number), chunksize=16)
        for index, result in enumerate(track(composed, f"images, {split}", number, transient=True)):
            yield f"{index:05d}", result


def compose_indexed(compose: Callable, split: str, index: int) -> object:
    return compose(*split_digits()[split], np.random.default_rng([SPLITS.index(split), index]))
