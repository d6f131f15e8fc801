# SPDX-License-Identifier: Apache-2.0
"""Scenes composed of real handwritten digits, for segmentation and detection without a download."""

from dataclasses import dataclass

import cv2
import numpy as np

from .compose import warp_scan

HEIGHT, WIDTH = 120, 152  # pixels; not a multiple of common tile sizes
DIGITS = (2, 4)  # drawn for a scene; one that would hide too much of another is skipped
SIDES = (56, 80)  # of a scan, in pixels of the scene
TURN = 15  # degrees, in both directions
LEAST_VISIBLE = 0.75  # of a digit's ink, after occlusion
LEAST_CONTRAST = 60  # grey levels between a digit and its background
GREY = np.array([0.114, 0.587, 0.299])  # of blue, green and red


@dataclass
class Scene:
    """An image of several digits, with a mask for each."""

    image: np.ndarray  # (HEIGHT, WIDTH, 3), uint8, BGR
    digits: list[int]  # from back to front, 0 to 9
    masks: np.ndarray  # their visible ink, (number of digits, HEIGHT, WIDTH), bool; they do not overlap

    def class_map(self) -> np.ndarray:
        """Return the class of each pixel, shape (HEIGHT, WIDTH), uint8: 0 is background, 1 + d a digit d."""
        return np.tensordot(np.array(self.digits, np.uint8) + 1, self.masks.astype(np.uint8), 1)


def compose_scene(scans: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> Scene:
    """Compose scans of digits on a textured background, each with random colour, size, position and rotation.

    Args:
        scans: Scans to choose from, shape (n, 8, 8), uint8 from 0 (paper) to 255 (ink).
        labels: Their digits, shape (n,).
        generator: Source of randomness; the same state gives the same scene.
    """
    image = paint_background(generator)
    digits, masks, sizes = [], np.zeros((0, HEIGHT, WIDTH), bool), []
    for choice in generator.integers(len(scans), size=generator.integers(DIGITS[0], DIGITS[1] + 1)):
        coverage = place_scan(scans[choice], generator)
        ink = coverage > 0.5
        remaining = masks & ~ink
        if any(mask.sum() < LEAST_VISIBLE * size for mask, size in zip(remaining, sizes)):
            continue
        colour = choose_colour(image[ink].mean(0), generator)
        image += coverage[..., None] * (colour - image)
        digits.append(int(labels[choice]))
        masks = np.concatenate([remaining, ink[None]])
        sizes.append(ink.sum())
    image += generator.normal(0, 6, image.shape)  # like the noise of a sensor
    return Scene(np.rint(image).clip(0, 255).astype(np.uint8), digits, masks)


def paint_background(generator: np.random.Generator) -> np.ndarray:
    """Draw a background with noise at three scales, shape (HEIGHT, WIDTH, 3), float."""
    image = np.tile(generator.uniform(10, 80, 3), (HEIGHT, WIDTH, 1))
    for cells, amplitude in ((3, 30), (8, 20), (24, 10)):
        noise = generator.uniform(-amplitude, amplitude, (cells, cells, 3))
        image += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return image


def place_scan(scan: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Warp a scan to a random position in the scene: coverage of each pixel, shape (HEIGHT, WIDTH), from 0 to 1."""
    side, angle = generator.uniform(*SIDES), generator.uniform(-TURN, TURN)
    margin = 0.45 * side
    center = generator.uniform(margin, WIDTH - margin), generator.uniform(margin, HEIGHT - margin)
    return warp_scan(scan, (HEIGHT, WIDTH), center, side, angle)


def choose_colour(behind: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw a random colour, BGR, with enough contrast to the mean colour behind it."""
    while True:
        colour = generator.uniform(120, 255, 3)
        if abs((colour - behind) @ GREY) >= LEAST_CONTRAST:
            return colour
