# SPDX-License-Identifier: Apache-2.0
"""Run models of any framework on random images, part by part and up to their raw outputs."""

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from mmrepmlp.models import image_channels, image_size, named_parts

# Boxes for the second stage of a detector, as shares of the image: x1, y1, x2, y2.
BOXES = ((0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.5, 0.9), (0.4, 0.3, 0.6, 0.5), (0.7, 0.0, 1.0, 0.2))


@dataclass
class ModelOutputs:
    """What a model computes before any post-processing.

    Attributes:
        maps: Outputs of the model's parts, by name: see :func:`mmrepmlp.models.named_parts`.
        head: Raw outputs of the heads; None where they could not be called, and of a bare backbone.
        error: Why they could not; None where they were.
        uncalled: Parts that could not be called either, and why.
    """

    maps: dict[str, object] = field(default_factory=dict)
    head: object = None
    error: str | None = None
    uncalled: dict[str, str] = field(default_factory=dict)

    def parts(self) -> dict[str, object]:
        """All outputs by the name of the part that computes them."""
        return {**self.maps, **({} if self.error or self.head is None else {"head": self.head})}


def random_images(model: nn.Module, number: int, scale: float = 1.0) -> Tensor:
    """Random images, float64, the same in every call.

    Args:
        model: Its backbone tells the number of channels and the size; 224 pixels if it does not.
        number: How many.
        scale: Factor on the size. Default: 1.

    Returns:
        Shape (number, channels, height, width).
    """
    return random_maps(number, image_channels(model), *(int(scale * side) for side in image_size(model)))


def random_maps(*shape: int) -> Tensor:
    """Random numbers, float64, the same in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run_model(model: nn.Module, images: Tensor) -> ModelOutputs:
    """Compute the maps and the raw outputs of a model.

    The outputs of the heads are computed where the model can be called without annotations of its own data set. Parts
    that this does not reach, such as a teacher, are called alone. Random numbers that a model draws are the same in
    every call.

    Args:
        model: A model of any framework, or a bare backbone.
        images: Shape (N, C, H, W), normalized.
    """
    outputs, parts = ModelOutputs(), named_parts(model)
    with ExitStack() as stack:
        stack.enter_context(fixed_seed(images))
        for name, part in parts.items():
            stack.callback(part.register_forward_hook(keep_output(outputs.maps, name)).remove)
        try:
            head = call_whole(model, images)
            outputs.head = None if model in parts.values() else head
        except Exception as error:  # of whatever the model needs besides images
            outputs.error = describe(error)
        call_missing(parts, images, outputs)
    return outputs


@contextmanager
def fixed_seed(images: Tensor) -> Iterator[None]:
    """Seed all generators of random numbers alike, and put them back afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0]), np.random.set_state(states[1])


def describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][:200]


def call_missing(parts: dict[str, nn.Module], images: Tensor, outputs: ModelOutputs) -> None:
    """Call the parts whose outputs are missing, on the first of their :func:`possible_inputs` that they take."""
    missing = [name for name in parts if name not in outputs.maps]
    for name in sorted(missing, key=lambda name: name.endswith("neck")):
        for inputs in possible_inputs(name, parts[name], images, outputs.maps):
            try:
                output = parts[name](tree_map_only(Tensor, lambda x: x.to(images), inputs))
            except Exception as error:  # of whatever it needs besides maps
                outputs.uncalled.setdefault(name, describe(error))
            else:
                outputs.maps.setdefault(name, output)
                outputs.uncalled.pop(name, None)
                break


def possible_inputs(name: str, part: nn.Module, images: Tensor, maps: dict[str, object]) -> Iterator[object]:
    """What a part may take: the maps of the neck and the backbone beside it, images, or random maps of as many channels
    as its first layer has."""
    owner = name[: name.rfind(".") + 1]
    yield from (maps[beside] for beside in (f"{owner}neck", f"{owner}backbone") if beside in maps)
    channels = image_channels(part)
    yield images if channels == images.size(1) else random_maps(len(images), channels, *images.shape[2:])


def keep_output(kept: dict[str, object], name: str) -> Callable:
    """A forward hook that stores a module's first output; tensors are copied, since what follows may change them."""

    def hook(module: nn.Module, args: tuple, output: object) -> None:
        kept.setdefault(name, tree_map_only(Tensor, Tensor.clone, output))

    return hook


def call_whole(model: nn.Module, images: Tensor) -> object:
    """Raw outputs of a model's heads; of a bare backbone, its maps."""
    if "mode" not in inspect.signature(model.forward).parameters:
        return model(images)
    samples = make_samples(model, images)
    if hasattr(model, "roi_head"):
        return call_two_stages(model, images, samples)
    if hasattr(model, "decode_head"):
        return call_decode_heads(model, images, samples)
    given = () if samples is None else (samples,)
    return model(images, *given, mode="tensor")


def call_decode_heads(model: nn.Module, images: Tensor, samples: list) -> object:
    """Raw outputs of a segmentor's heads: decode heads, each with what the one before gives, and auxiliary ones."""
    features, outputs = model.extract_feat(images), []
    heads = model.decode_head if isinstance(model.decode_head, nn.ModuleList) else [model.decode_head]
    for head in heads:
        try:
            outputs.append(head(features, *outputs[-1:]))
        except TypeError:  # a head that classifies masks takes the samples as well
            outputs.append(head(features, samples))
    auxiliary = getattr(model, "auxiliary_head", None) or ()
    auxiliary = auxiliary if isinstance(auxiliary, nn.ModuleList) else [auxiliary] if auxiliary else []
    return [*outputs, *(head(features) for head in auxiliary)] if auxiliary or len(outputs) > 1 else outputs[0]


def call_two_stages(model: nn.Module, images: Tensor, samples: list) -> object:
    """Raw outputs of a two-stage detector on fixed boxes.

    Its own proposals are sorted and suppressed, so that a rounding error could swap two of them.
    """
    features = model.extract_feat(images)
    try:
        first = model.rpn_head(features) if model.with_rpn else ()
        boxes = [InstanceData(bboxes=sample.gt_instances.bboxes) for sample in samples]
        semantic = [model.semantic_head(features)] if getattr(model, "with_semantic_head", False) else []
        return {"rpn": first, "roi": model.roi_head.forward(features, boxes, samples), "semantic": semantic}
    except (KeyError, AttributeError, NotImplementedError, TypeError):  # proposals are learned
        return model(images, samples, mode="tensor")


def make_samples(model: nn.Module, images: Tensor) -> list[BaseDataElement] | None:
    """Samples as the model's framework makes them, with the same boxes in every image; None if it needs none."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    size = tuple(images.shape[-2:])
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    meta.update(scale_factor=(1.0, 1.0), flip=False, flip_direction=None, border=np.array([0, size[0], 0, size[1]]))
    if "mmseg" in packages:
        from mmseg.structures import SegDataSample

        return [SegDataSample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]
    if "mmdet" in packages:
        from mmdet.structures import DetDataSample

        samples = [DetDataSample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]
        for sample in samples:
            sample.gt_instances = make_instances(images)
        return samples
    return None


def make_instances(images: Tensor) -> InstanceData:
    """Boxes with masks of one class."""
    from mmdet.structures.mask import BitmapMasks

    height, width = images.shape[-2:]
    boxes = torch.tensor(BOXES, device="cpu") * torch.tensor([width, height, width, height], device="cpu")
    masks = np.zeros((len(BOXES), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    labels = torch.zeros(len(BOXES), dtype=torch.long, device=images.device)
    return InstanceData(bboxes=boxes.to(images), labels=labels, masks=BitmapMasks(masks, height, width))


@torch.no_grad()
def count_macs(model: nn.Module) -> int:
    """Multiply-accumulate operations of convolutions and matrix products on one image; without heads that cannot be
    called."""
    images = random_images(model, 1).float()
    model = copy.deepcopy(model)  # which a forward pass may change
    with FlopCounterMode(display=False) as counter:
        error = run_model(model, images).error
    if error:
        with FlopCounterMode(display=False) as counter:
            call_missing(named_parts(model), images, ModelOutputs())
    return counter.get_total_flops() // 2
