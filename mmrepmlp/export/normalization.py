# SPDX-License-Identifier: Apache-2.0
"""What a data preprocessor does to the colors of an image, asked of the preprocessor itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .network import ExportError

SIDE = 64  # of the images to ask with, in pixels; a multiple of what sides are padded to
WHITE = 255


@dataclass(frozen=True)
class Normalization:
    """A scale and a shift for each channel of a network's input, which is a channel of the image.

    Attributes:
        channels: For each channel of the input the channel of the image.
        scale: Factor on the image's values, 0 to 255.
        shift: What is added afterwards.
    """

    channels: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """Map images (N, H, W, C) of 0 to 255 to normalized ones (N, C, H, W)."""
        images = images.permute(0, 3, 1, 2).float()
        if self.channels != tuple(range(len(self.channels))):
            images = torch.cat([images[:, channel : channel + 1] for channel in self.channels], 1)
        return images * self.column(self.scale, images) + self.column(self.shift, images)

    def undo(self, inputs: Tensor) -> Tensor:
        """Map normalized images (N, C, H, W) back to (N, H, W, C), uint8."""
        values = (inputs - self.column(self.shift, inputs)) / self.column(self.scale, inputs)
        order = [self.channels.index(channel) for channel in range(len(self.channels))]
        return values[:, order].round().clamp(0, WHITE).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @staticmethod
    def column(values: Sequence[float], like: Tensor) -> Tensor:
        """A number for each channel, to broadcast over (N, C, H, W)."""
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def preprocessing_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The data preprocessor of a model as a function of images (N, H, W, C), uint8, that gives (N, C, H, W)."""

    def preprocess(images: Tensor) -> Tensor:
        data = {"inputs": list(images.permute(0, 3, 1, 2)), "data_samples": None}
        inputs = model.data_preprocessor(data, False)["inputs"]
        return torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs

    return preprocess


def measure_normalization(preprocess: Callable[[Tensor], Tensor], channels: int) -> Normalization:
    """Find the normalization in what a preprocessor makes of a black image and of one in each primary color.

    Args:
        preprocess: Maps images (N, H, W, C), uint8, to (N, C, H, W).
        channels: Number of channels of an image.

    Raises:
        ExportError: The preprocessor does something else.
    """
    primaries = torch.cat([torch.zeros(1, channels), torch.eye(channels)]) * WHITE
    images = primaries.to(torch.uint8)[:, None, None].expand(-1, SIDE, SIDE, -1).contiguous()
    black, *colors = preprocess(images)[..., 0, 0].double()
    slopes = (torch.stack(colors, 1) - black[:, None]) / WHITE  # from each channel of the image to each of the input
    which = slopes.abs().argmax(1)
    scale = slopes.gather(1, which[:, None])[:, 0]
    found = Normalization(tuple(which.tolist()), tuple(scale.tolist()), tuple(black.tolist()))
    trial = torch.randint(0, WHITE + 1, (2, SIDE, SIDE, channels), generator=torch.Generator().manual_seed(0))
    trial = trial.to(torch.uint8)
    expected = preprocess(trial)
    if expected.shape != (2, channels, SIDE, SIDE) or not torch.allclose(found.apply(trial), expected, 1e-4, 1e-4):
        raise ExportError(
            "The config's data preprocessor does more to an image than to scale and shift each channel: the graph "
            "cannot take images as they are. Export one that takes preprocessed images with mmrepmlp deploy --raw."
        )
    return found
