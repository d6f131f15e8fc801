# SPDX-License-Identifier: Apache-2.0
"""The normalization of images in a data preprocessor, measured from its outputs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .network import ExportError

SIDE = 64  # of the images to measure with, in pixels
IMAGE_TYPES = (torch.uint8, torch.uint16)


@dataclass(frozen=True)
class Normalization:
    """Scale and shift for each channel of a network's input, which is a channel of the image."""

    channels: tuple[int, ...]  # of the image, for each channel of the input
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    largest: int = 255  # value of an image, or 65535

    @property
    def dtype(self) -> torch.dtype:
        """The type of an image."""
        return next(dtype for dtype in IMAGE_TYPES if torch.iinfo(dtype).max == self.largest)

    def apply(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, C) to normalized ones (N, C, H, W)."""
        images = images.permute(0, 3, 1, 2).float()
        if self.channels != tuple(range(len(self.channels))):
            images = torch.cat([images[:, channel : channel + 1] for channel in self.channels], 1)
        return images * self.column(self.scale, images) + self.column(self.shift, images)

    def undo(self, inputs: Tensor) -> Tensor:
        """Map normalized images (N, C, H, W) back to (N, H, W, C)."""
        values = (inputs - self.column(self.shift, inputs)) / self.column(self.scale, inputs)
        order = [self.channels.index(channel) for channel in range(max(self.channels) + 1)]
        lowest, highest = values.min().item(), values.max().item()
        if lowest < -0.5 * self.largest or highest > 1.5 * self.largest:  # resizing overshoots a little
            raise ExportError(
                f"The images have values from {lowest:.0f} to {highest:.0f}, but the graph takes 0 to {self.largest}. "
                "Deploy with a dataset of such images in the config: the graph then takes their type."
            )
        return values[:, order].round().clamp(0, self.largest).to(self.dtype).permute(0, 2, 3, 1).contiguous()

    @staticmethod
    def column(values: Sequence[float], like: Tensor) -> Tensor:
        """Make a tensor of one number for each channel, which broadcasts over (N, C, H, W)."""
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def preprocessing_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the data preprocessor of a model, without its padding, as a function from images (N, H, W, C) to
    (N, C, H, W)."""
    preprocessor = copy.copy(model.data_preprocessor)
    vars(preprocessor).update(test_cfg=None, pad_size_divisor=1)

    def preprocess(images: Tensor) -> Tensor:
        data = {"inputs": list(images.permute(0, 3, 1, 2)), "data_samples": None}
        inputs = preprocessor(data, False)["inputs"]
        return torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs

    return preprocess


def random_images(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.uint8, generator: torch.Generator | None = None
) -> Tensor:
    """Make random images (N, H, W, C)."""
    return torch.randint(0, torch.iinfo(dtype).max + 1, shape, generator=generator).to(dtype)


def measure_normalization(
    preprocess: Callable[[Tensor], Tensor], channels: int, dtype: torch.dtype = torch.uint8
) -> Normalization:
    """Measure a normalization from the outputs of a preprocessor for a black image and one in each primary color.

    Args:
        preprocess: Maps images (N, H, W, C) to (N, C, H, W).
        channels: Number of channels of the images.
        dtype: Type of the images, uint8 or uint16. Default: torch.uint8.

    Raises:
        ExportError: The preprocessor does more than scale and shift each channel.
    """
    largest = torch.iinfo(dtype).max
    primaries = torch.cat([torch.zeros(1, channels), torch.eye(channels)]) * largest
    trial = random_images((2, SIDE, SIDE, channels), dtype, torch.Generator().manual_seed(0))
    images = primaries.to(dtype)[:, None, None].expand(-1, SIDE, SIDE, -1).contiguous()
    black, *colors = preprocess(images)[..., 0, 0].double()
    slopes = (torch.stack(colors, 1) - black[:, None]) / largest  # from each channel of the image to each of the input
    which = slopes.abs().argmax(1)
    scale = slopes.gather(1, which[:, None])[:, 0]
    found = Normalization(tuple(which.tolist()), tuple(scale.tolist()), tuple(black.tolist()), largest)
    expected, actual = preprocess(trial), found.apply(trial)
    if expected.shape != actual.shape or not torch.allclose(actual, expected, 1e-4, 1e-4):
        raise ExportError(
            "The config's data preprocessor does more than scale and shift each channel: the graph cannot take images "
            "as they are. Export one that takes preprocessed images with mmrepmlp deploy --raw."
        )
    return found
