# SPDX-License-Identifier: Apache-2.0
"""Networks that map images as they are read to predictions, for programs without any framework."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrepmlp.models import image_channels, image_size
from mmrepmlp.quantization.aware import is_quantized
from mmrepmlp.reparam import distance

from .network import ExportError, NamedOutputs, exportable_parts
from .normalization import measure_normalization, preprocessing_of, random_images

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
    "none": lambda scores: scores,
}
AGREEMENT = 1e-4
ROUNDING = 0.05  # of a network that rounds: a value halfway between two levels may become either


@dataclass
class Task:
    """The kind of predictions of a graph."""

    name: str  # classification, segmentation or features, the feature maps of a part of any other model
    output: str  # scores of each class, classes or logits of each pixel, or feature maps
    # How the output is made: activation of scores, number of logits and threshold of a single one, part.
    settings: dict[str, object] = field(default_factory=dict)


def task_of(model: nn.Module, part: str | None = None, logits: bool = False, channels: int | None = None) -> Task:
    """Find what a model predicts, from the methods that its framework calls.

    Args:
        model: A model of mmpretrain, mmsegmentation or mmdetection, or any other with a backbone.
        part: The part whose feature maps are exported. Default: None, the whole of a classifier or segmentor, the neck
            of others, or the backbone if there is none.
        logits: Whether a segmentor returns logits instead of classes. Default: False.
        channels: Number of image channels. Default: None, as many as :func:`image_channels` finds.

    Raises:
        ValueError: ``logits`` is set, and the model is not a segmentor or not exported as a whole.
        ExportError: The model is neither a classifier nor a segmentor, and has no backbone.
    """
    segments = part is None and hasattr(model, "encode_decode") and hasattr(model, "decode_head")
    if logits and not segments:
        raise ValueError("logits=True: only whole segmentors return logits.")
    if segments:
        outputs = getattr(model.decode_head, "out_channels", None) or model.decode_head.num_classes
        threshold = {"threshold": float(model.decode_head.threshold)} if outputs == 1 else {}
        return Task("segmentation", "logits" if logits else "classes", {"channels": outputs, **threshold})
    if part is None and hasattr(model, "head") and hasattr(model, "predict"):
        activation = activation_of(model, channels or image_channels(model))
        if activation:
            return Task("classification", "scores", {"activation": activation})
    parts = [part] if part else exportable_parts(model)
    if not parts:
        raise ExportError(f"{type(model).__name__} is not a classifier or segmentor, and has no backbone to export.")
    return Task("features", "maps", {"part": parts[0]})


@torch.no_grad()
def activation_of(model: nn.Module, channels: int) -> str | None:
    """Find which of :data:`ACTIVATIONS` maps a classifier's raw output to the scores that it predicts; None if none
    does."""
    # Of the size that the backbone was built for: some backbones take no other.
    images = preprocessing_of(model)(random_images((2, *image_size(model), channels)))
    try:
        raw = model(images, mode="tensor")
        scores = torch.stack([sample.pred_score for sample in model.predict(images)])
    except Exception:  # any kind of model may have a head
        return None
    if not isinstance(raw, Tensor) or raw.shape != scores.shape:
        return None
    return next((name for name, apply in ACTIVATIONS.items() if distance(apply(raw), scores)[1] < AGREEMENT), None)


class PredictionNetwork(NamedOutputs):
    """A model as a function that maps images as they are read to predictions.

    Args:
        model: The model, in eval mode.
        task: What it predicts.
        image: An image (1, H, W, C) of its dataset, uint8 or uint16, whose type and number of channels the network
            takes. Default: None, uint8 in as many channels as the model takes.
    """

    axes: ClassVar[dict[str, int]] = {"batch": 0, "height": 1, "width": 2}

    def __init__(self, model: nn.Module, task: Task, image: Tensor | None = None) -> None:
        super().__init__(model, task.settings.get("part"))
        self.task = task
        self.channels = self.channels if image is None else image.size(-1)
        dtype = torch.uint8 if image is None else image.dtype
        self.normalization = measure_normalization(preprocessing_of(model), self.channels, dtype)

    def make_images(self, batch: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """Make random images that :meth:`forward` takes."""
        return random_images((batch, height, width, self.channels), self.normalization.dtype, generator)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, H, W, C) to scores (N, classes), classes (N, H, W), logits (N, channels, H, W), or
        feature maps."""
        inputs = self.normalization.apply(images)
        if self.task.name == "segmentation":
            logits = self.decode(inputs)
            return (logits if self.task.output == "logits" else self.classify(logits),)
        outputs = super().forward(inputs)
        if self.task.name == "classification":
            return (ACTIVATIONS[self.task.settings["activation"]](*outputs),)
        return outputs

    def decode(self, inputs: Tensor) -> Tensor:
        """Compute a segmentor's logits at the size of its input, with the framework's resizing."""
        size = inputs.shape[2:]
        return self.model.encode_decode(inputs, [dict(img_shape=size, ori_shape=size, pad_shape=size)])

    def classify(self, logits: Tensor) -> Tensor:
        """Return the class of each pixel, as mmsegmentation predicts it."""
        channels = self.task.settings["channels"]
        if channels == 1:
            return (logits.sigmoid() > self.task.settings["threshold"]).squeeze(1).to(torch.uint8)
        return logits.argmax(1).to(torch.uint8 if channels <= 256 else torch.int32)

    def error(self, images: Tensor, outputs: Sequence[Tensor]) -> float:
        """Return the relative error of a graph's outputs; that of classes is in terms of their logits."""
        if self.task.output != "classes":
            return super().error(images, outputs)
        (classes,) = outputs
        return class_error(self.decode(self.normalization.apply(images)), classes, self.task.settings.get("threshold"))

    @torch.no_grad()
    def check(self, size: tuple[int, int]) -> None:
        """Compare predictions with those of the framework's preprocessor and ``predict``."""
        images = self.make_images(2, *size, generator=torch.Generator().manual_seed(1))
        actual = self.run(images)
        inputs = preprocessing_of(self.model)(images)
        if self.task.output == "maps":
            expected = super().forward(inputs)
        elif self.task.output == "scores":
            expected = (torch.stack([sample.pred_score for sample in self.model.predict(inputs)]),)
        elif self.task.output == "logits":
            meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
            expected = (self.model.inference(inputs, [meta] * len(inputs)),)
        else:
            expected = (torch.cat([sample.pred_sem_seg.data for sample in self.model.predict(inputs)]),)
        if self.task.output == "classes":  # of two equal logits, either class is right
            gaps = [self.error(images, (classes,)) for classes in (*actual, *expected)]
        else:
            gaps = [distance(a, e)[1] for a, e in zip(actual, expected, strict=True)]
        if not all(gap < (ROUNDING if is_quantized(self) else AGREEMENT) for gap in gaps):
            raise ExportError(
                f"The {self.task.output} of the graph would differ from the framework's by {max(gaps):.1e} relative."
            )


def class_error(logits: Tensor, classes: Tensor, threshold: float | None = None) -> float:
    """Return how far classes of pixels (N, H, W) are from those of the largest logits (N, channels, H, W).

    The error is the largest amount by which the logit of a pixel's class is below the pixel's largest logit, or by
    which a single logit is on the other side of the threshold, relative to the largest absolute logit. Of two equal
    logits, either class is right. The error is infinite for another shape or a class that does not exist.
    """
    if logits.size(1) == 1:
        logits = logits - torch.logit(torch.tensor(threshold, dtype=logits.dtype))
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    channels = logits.size(1)
    if classes.shape != logits[:, 0].shape or not ((classes >= 0) & (classes < channels)).all():
        return float("inf")
    chosen = logits.gather(1, classes.long()[:, None])
    return ((logits.amax(1, True) - chosen).max() / logits.abs().max()).item()
