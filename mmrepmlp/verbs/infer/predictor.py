# SPDX-License-Identifier: Apache-2.0
"""Run models of mmpretrain, mmsegmentation and mmdetection on images, and draw their predictions."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.registry import VISUALIZERS as REGISTRY
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, Dataset

from mmrepmlp.checkpoint import meta_of, unwrap
from mmrepmlp.verbs.config import class_metainfo, framework_of, innermost_dataset, require
from mmrepmlp.verbs.infer.drawing import draw_sample
from mmrepmlp.verbs.model import build_fitting

from .images import ImageError, image_loader, is_loader, read_image, to_rgb
from .results import labels_of

IMAGES_PER_WORKER = 16  # to start a process takes as long as to load about as many
VISUALIZERS = dict(mmpretrain="UniversalVisualizer", mmseg="SegLocalVisualizer", mmdet="DetLocalVisualizer")


@dataclass
class Prediction:
    """An image file and what a model predicts for it.

    Attributes:
        path: The file.
        image: The image as the config reads it, usually BGR (H, W, 3), uint8; None if it cannot be read.
        sample: The framework's data sample, on the CPU; None before the prediction, and if there is none.
        reason: Why the image cannot be read. Default: empty.
        inputs: The result of the test pipeline, until the prediction.
    """

    path: Path
    image: np.ndarray | None = None
    sample: BaseDataElement | None = None
    reason: str = ""
    inputs: dict | None = None


class Predictor:
    """Model with its test pipeline and a visualizer that draws its predictions.

    Args:
        cfg: A config of mmpretrain, mmsegmentation or mmdetection, in training form or deploy form.
        checkpoint: Path or URL of a checkpoint, in training form or deploy form.
        device: Device to run on. Default: a GPU if there is one.

    Raises:
        ValueError: The config is of another framework or has no test set, or the checkpoint does not fit it.
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
        self.model = build_fitting(cfg, unwrap(content))[0].to(device)
        # On a CPU, the model itself takes all cores.
        self.workers = 0 if torch.device(device).type == "cpu" else cfg.test_dataloader.get("num_workers", 0)
        steps = innermost_dataset(cfg).get("pipeline") or []
        visualizer = {"type": VISUALIZERS[self.framework], **(cfg.get("visualizer") or {}), "vis_backends": None}
        with self.scope():
            self.load_image = image_loader(steps, TRANSFORMS.build)
            self.prepare = Compose([step for step in steps if not is_loader(step)])
            # A new name, since the visualizer of an earlier call in this process may have other settings.
            self.visualizer = REGISTRY.build({**visualizer, "name": f"inference {time.monotonic_ns()}"})
        meta = class_metainfo(cfg, meta_of(content))
        self.classes, self.palette = meta.get("classes"), meta.get("palette")

    def scope(self) -> DefaultScope:
        """Return a context manager that sets the framework's default scope."""
        return DefaultScope.overwrite_default_scope(self.framework)

    def read(self, path: Path) -> np.ndarray:
        """Read an image as the config's test pipeline does, by :func:`read_image`."""
        return read_image(path, self.load_image)

    def stream(self, paths: Sequence[Path], batch: int = 1) -> Iterator[Prediction]:
        """Predict image files in their order, in batches; on a GPU, the workers of the config load the next ones."""
        workers = min(self.workers, len(paths) // IMAGES_PER_WORKER)
        files = ImageFiles(paths, self.load_image, self.prepare)
        with self.scope():
            for loaded in DataLoader(files, batch, num_workers=workers, collate_fn=list):
                yield from self.predict(loaded)

    @torch.no_grad()
    def predict(self, loaded: Sequence[Prediction]) -> list[Prediction]:
        """Add the model's predictions to loaded images, in one batch if possible.

        mmdetection pads images of different sizes; the other frameworks get one batch per size.
        """
        batches: dict[object, list[Prediction]] = {}
        for item in loaded:
            if item.inputs is not None:
                size = None if self.framework == "mmdet" else item.inputs["inputs"].shape
                batches.setdefault(size, []).append(item)
        for batch in batches.values():
            samples = self.model.test_step(pseudo_collate([item.inputs for item in batch]))
            for item, sample in zip(batch, samples, strict=True):
                item.sample, item.inputs = sample.cpu(), None
        return list(loaded)

    def draw(self, image: np.ndarray, sample: BaseDataElement, score: float) -> np.ndarray:
        """Draw a prediction on its image by :func:`draw_sample`; return it as RGB."""
        number = 1 + max(labels_of(sample), default=0)
        names = [self.name_of(label) for label in range(max(number, len(self.classes or ())))]
        self.visualizer.dataset_meta = dict(classes=names, palette=complete_palette(self.palette, len(names)))
        return draw_sample(self.visualizer, to_rgb(image), sample, score)

    def name_of(self, label: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        return str(self.classes[label]) if label < len(self.classes or ()) else str(label)


class ImageFiles(Dataset):
    """Image files, each read and run through a test pipeline, or with the reason why it cannot be read."""

    def __init__(self, paths: Sequence[Path], load: Callable[[dict], dict | None], prepare: Compose) -> None:
        self.paths, self.load, self.prepare = paths, load, prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Prediction:
        path = self.paths[index]
        try:
            image = read_image(path, self.load)
        except ImageError as error:
            return Prediction(path, reason=str(error))
        size = image.shape[:2]
        return Prediction(path, image, inputs=self.prepare(dict(img=image, img_shape=size, ori_shape=size)))


def complete_palette(palette: Sequence | None, number: int) -> list:
    """Return the colors of all classes; missing ones are random, but always the same."""
    colors = [tuple(color) for color in np.random.RandomState(42).randint(0, 256, (number, 3)).tolist()]
    known = [tuple(color) for color in palette or ()]
    return known[:number] + colors[len(known) :]
