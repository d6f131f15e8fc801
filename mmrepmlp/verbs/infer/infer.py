# SPDX-License-Identifier: Apache-2.0
"""Run a model on images, and write the predictions as JSON lines and as drawn images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mmrepmlp.checkpoint import atomic_write, check_overwrite
from mmrepmlp.verbs.config import read_config

from .images import ImageError, find_images
from .predictor import Prediction, Predictor
from .results import describe, to_png

MAPS = ("sem_seg", "panoptic_seg")
WRITABLE = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # other formats are written as PNG


@dataclass
class Inference:
    """Result of :func:`infer`: the written predictions.

    Attributes:
        file: JSON lines file, one object per image.
        predicted: Number of images with a prediction.
        skipped: Objects of the images that could not be read, with the reasons, as in the file.
    """

    file: Path
    predicted: int = 0
    skipped: list[dict] = field(default_factory=list)

    def read(self) -> Iterator[dict]:
        """Iterate over the predictions in the file."""
        with self.file.open() as lines:
            yield from (line for line in map(json.loads, lines) if "reason" not in line)

    def __str__(self) -> str:
        lines = [f"skipped {item['image']}: {item['reason']}" for item in self.skipped]
        text = "\n".join([*lines, f"{self.file}: predictions for {self.predicted} image{'s' * (self.predicted != 1)}"])
        return text.encode(errors="backslashreplace").decode()  # a file name may not be valid text


def infer(
    config: str | Path,
    checkpoint: str | Path,
    images: str | Path,
    out: str | Path,
    device: str | None = None,
    score: float = 0.5,
    batch: int = 1,
    visualize: bool = True,
    cfg_options: dict | None = None,
    overwrite: bool = False,
) -> Inference:
    """Run a classifier, segmentor or detector on an image or on the images in a folder.

    Predictions are written one by one, so that an interrupted run keeps those it has made.

    Args:
        config: Config of mmpretrain, mmsegmentation or mmdetection, in training form or deploy form.
        checkpoint: Its checkpoint, in training form or deploy form. A config in training form also takes a checkpoint
            in deploy form; the reverse works for RepMLPNets.
        images: An image, or a folder that is searched recursively.
        out: Folder to write to: ``predictions.jsonl``; ``model.json``, which names framework, config, checkpoint and
            classes; ``visualizations/``, with each image and its prediction, under its name; and ``maps/``, with the
            labels of all pixels, for models that segment whole images.
        device: Device to run on. Default: a GPU if there is one.
        score: Lowest score of a detection to be drawn; the file has all detections. Default: 0.5.
        batch: Batch size. On a GPU, images are loaded by as many workers as the config's ``test_dataloader`` has.
            Default: 1.
        visualize: Whether to draw the predictions, which may take longer than to make them. Default: True.
        cfg_options: Config settings to override, by dotted name. Default: None.
        overwrite: Whether to replace the files of an earlier call. Default: False.

    Returns:
        The written predictions. Images that cannot be read are skipped.

    Raises:
        FileNotFoundError: The config, checkpoint, image or folder does not exist.
        FileExistsError: ``out`` has predictions and ``overwrite`` is not set.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: There is no image, the checkpoint does not fit the config, or the config has no test set or another
            framework.
        ImageError: None of the images can be read.
        MMRepMLPError: The model is not a classifier, segmentor or detector.
    """
    out = Path(out)
    result, about = Inference(out / "predictions.jsonl"), out / "model.json"
    check_overwrite(result.file, about, overwrite=overwrite)
    cfg = read_config(config, cfg_options)
    root, paths = find_images(images, (out / "visualizations", out / "maps"))
    predictor = Predictor(cfg, checkpoint, device)
    check_readable(predictor, paths)
    origin = dict(framework=predictor.framework, config=str(config), checkpoint=str(checkpoint))
    with atomic_write(about) as temporary:
        temporary.write_text(json.dumps(dict(**origin, classes=predictor.classes)))
    stream = predictor.stream(paths, batch)
    with result.file.open("w") as file, closing(stream):
        for prediction in track(stream, "predictions", len(paths), console=Console(stderr=True), transient=True):
            line = write_prediction(predictor, prediction, root, out, score if visualize else None)
            file.write(json.dumps(line) + "\n")
            file.flush()
            if "reason" in line:
                result.skipped.append(line)
            else:
                result.predicted += 1
    return result


def check_readable(predictor: Predictor, paths: Sequence[Path]) -> None:
    """Check that any of the images can be read, usually the first."""
    reason = None
    for path in paths:
        try:
            predictor.read(path)
            return
        except ImageError as error:
            reason = reason or error
    raise ImageError(f"None of the images can be read. {paths[0]}: {reason}.")


def write_prediction(
    predictor: Predictor, prediction: Prediction, root: Path, out: Path, score: float | None
) -> dict[str, object]:
    """Write visualization, unless the score is None, and map of an image.

    Returns:
        The prediction as plain data, or why there is none.
    """
    name = prediction.path.relative_to(root).as_posix()
    if prediction.reason:
        return dict(image=name, reason=prediction.reason)
    image, sample = prediction.image, prediction.sample
    height, width = image.shape[:2]
    line = dict(image=name, height=height, width=width)
    if score is not None:
        line["visualization"] = f"visualizations/{name}" + ("" if name.lower().endswith(WRITABLE) else ".png")
        write_image(out / line["visualization"], predictor.draw(image, sample, score)[..., ::-1])
    result = describe(sample, predictor.model, predictor.name_of)
    for kind in MAPS:
        if kind in result:
            file = f"maps/{name}.png"
            write_image(out / file, to_png(kind, result[kind]))
            result[kind] = file
    return line | result


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a BGR or gray image atomically, in the format of its suffix."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
