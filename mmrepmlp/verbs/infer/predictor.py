# SPDX-License-Identifier: Apache-2.0
"""The inferencers of mmpretrain, mmsegmentation and mmdetection behind one interface."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement

from mmrepmlp.checkpoint import load_weights, meta_of, unwrap
from mmrepmlp.verbs.config import class_metainfo, framework_of, innermost_dataset, require
from mmrepmlp.verbs.infer.drawing import draw_sample
from mmrepmlp.verbs.model import build_fitting, drop_pretrained

from .images import image_loader, is_loader, read_image, to_rgb
from .results import labels_of

VISUALIZERS = dict(mmpretrain="UniversalVisualizer", mmseg="SegLocalVisualizer", mmdet="DetLocalVisualizer")


class Predictor:
    """A model with what prepares its images and draws its predictions, as its framework's inferencer has them.

    Args:
        cfg: A config of mmpretrain, mmsegmentation or mmdetection, in training form or deploy form.
        checkpoint: Path or URL of a checkpoint, in training form or deploy form.
        device: Device to compute on. Default: a GPU if there is one.

    Raises:
        ValueError: The config belongs to another framework or has no test set, or the checkpoint does not fit it.
        CheckpointError: The checkpoint cannot be read, or there is no such device.
    """

    def __init__(self, cfg: Config, checkpoint: str | Path, device: str | None = None) -> None:
        self.framework = framework_of(cfg)
        if self.framework not in VISUALIZERS:
            raise ValueError(
                f"The config has default_scope={self.framework!r}: expected one of {', '.join(VISUALIZERS)}."
            )
        require(cfg, "test_dataloader")
        device = device or get_device()
        content = CheckpointLoader.load_checkpoint(str(checkpoint), map_location=device, logger="silent")
        state = unwrap(content)
        self.cfg = prepare_config(build_fitting(cfg, state)[1])
        with self.scope():
            self.load = image_loader(innermost_dataset(cfg).get("pipeline") or [], TRANSFORMS.build)
            self.inferencer = build_inferencer(self.cfg, str(checkpoint), device)
        load_weights(self.inferencer.model, state)  # whatever their names, of which MMEngine knows its own
        meta = class_metainfo(cfg, meta_of(content))
        self.classes, self.palette = meta.get("classes"), meta.get("palette")

    def scope(self) -> DefaultScope:
        """A context with the framework's default scope."""
        return DefaultScope.overwrite_default_scope(self.framework)

    def read(self, path: Path) -> np.ndarray:
        """Read an image as the config's test pipeline does; see :func:`read_image`."""
        return read_image(path, self.load)

    def predict(self, images: Sequence[np.ndarray]) -> list[BaseDataElement]:
        """Predict images, together where the framework puts them into one batch.

        That of mmdetection pads images of several sizes; those of the others take images of one size at a time.

        Returns:
            The framework's data samples, on the CPU.
        """
        with self.scope():
            prepared = [next(iter(self.inferencer.preprocess([image]))) for image in images]
            # That of mmdetection gives the images beside the batch.
            prepared = [data if isinstance(data, Mapping) else data[-1] for data in prepared]
            batches: dict[object, list[int]] = {}
            for index, data in enumerate(prepared):
                size = None if self.framework == "mmdet" else data["inputs"][0].shape
                batches.setdefault(size, []).append(index)
            found = {}
            for indices in batches.values():
                batch = join([prepared[index] for index in indices])
                found.update(zip(indices, self.inferencer.forward(batch)))
        return [found[index].cpu() for index in range(len(images))]

    def draw(self, image: np.ndarray, sample: BaseDataElement, score: float) -> np.ndarray:
        """Draw a prediction on its image, detections from a score on: RGB, enlarged if the image is small."""
        number = 1 + max(labels_of(sample), default=0)
        names = [self.name_of(label) for label in range(max(number, len(self.classes or ())))]
        visualizer = self.inferencer.visualizer
        visualizer.dataset_meta = dict(classes=names, palette=complete_palette(self.palette, len(names)))
        with self.scope():
            return draw_sample(visualizer, to_rgb(image), sample, score)

    def name_of(self, label: int) -> str:
        """Name of a class; its number where there is no name."""
        return str(self.classes[label]) if label < len(self.classes or ()) else str(label)


def join(batches: Sequence[Mapping]) -> dict:
    """Join batches of one image each."""
    parts = {name: [batch[name] for batch in batches] for name in batches[0]}
    return {
        name: torch.cat(values) if isinstance(values[0], torch.Tensor) else [item for part in values for item in part]
        for name, values in parts.items()
    }


def prepare_config(cfg: Config) -> Config:
    """A copy of a config in which the inferencer of its framework finds what it looks for.

    That is the test set's pipeline at the top, beginning with the transform that loads images and without those that
    load annotations, a visualizer, and the data preprocessor in the model.
    """
    cfg, scope = copy.deepcopy(cfg), framework_of(cfg)
    cfg.default_scope = scope
    drop_pretrained(cfg.model)
    if "data_preprocessor" in cfg:
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    dataset = innermost_dataset(cfg)
    steps = [step for step in dataset.get("pipeline") or () if not is_loader(step)]
    cfg.test_dataloader.dataset = ConfigDict({**dataset, "pipeline": [dict(type="LoadImageFromFile"), *steps]})
    own = {"type": VISUALIZERS[scope], **(cfg.get("visualizer") or {})}
    cfg.visualizer = ConfigDict({**own, "name": "inference", "vis_backends": None})
    return cfg


def build_inferencer(cfg: Config, checkpoint: str, device: str) -> object:
    """Build the inferencer of a config's framework."""
    with warnings.catch_warnings():  # the names that a checkpoint lacks are taken from the config
        warnings.filterwarnings("ignore", "dataset_meta or class names")
        if cfg.default_scope == "mmpretrain":
            from mmpretrain import ImageClassificationInferencer
            from mmpretrain.registry import VISUALIZERS as REGISTRY

            inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint, device=device)
            inferencer.visualizer = REGISTRY.build(cfg.visualizer)
            return inferencer
        if cfg.default_scope == "mmseg":
            from mmseg.apis import MMSegInferencer

            return MMSegInferencer(cfg, weights=checkpoint, device=device)
        from mmdet.apis import DetInferencer

        # Without a palette it would build the test set, which may not be on this machine.
        return DetInferencer(cfg, weights=checkpoint, device=device, palette="random")


def complete_palette(palette: Sequence | None, number: int) -> list:
    """Colors of all classes, the missing ones random but always the same."""
    colors = [tuple(color) for color in np.random.RandomState(42).randint(0, 256, (number, 3)).tolist()]
    given = [tuple(color) for color in palette or ()]
    return given[:number] + colors[len(given) :]
