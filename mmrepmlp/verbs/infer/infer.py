# SPDX-License-Identifier: Apache-2.0
"""Predict images of one's own, and write the predictions as pictures and as JSON lines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mmrepmlp.checkpoint import atomic_write, check_overwrite
from mmrepmlp.verbs.config import read_config

from .images import ImageError, find_images
from .predictor import Predictor
from .results import describe, to_picture

MAPS = ("sem_seg", "panoptic_seg")
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # formats to write; any other becomes PNG


@dataclass
class Inference:
    """Predictions that were written.

    Attributes:
        file: The file, one JSON object a line.
        predicted: Number of images that were predicted.
        skipped: The images that could not be read, with the reasons, as in the file.
    """

    file: Path
    predicted: int = 0
    skipped: list[dict] = field(default_factory=list)

    def read(self) -> Iterator[dict]:
        """Read the predictions from the file, one after the other."""
        with self.file.open() as lines:
            yield from (line for line in map(json.loads, lines) if "reason" not in line)

    def __str__(self) -> str:
        lines = [f"skipped {item['image']}: {item['reason']}" for item in self.skipped]
        text = "\n".join([*lines, f"{self.file}: predictions for {self.predicted} image{'s' * (self.predicted != 1)}"])
        return text.encode(errors="backslashreplace").decode()  # a name may be no text


def infer(
    config: str | Path,
    checkpoint: str | Path,
    images: str | Path,
    out: str | Path,
    device: str | None = None,
    score: float = 0.5,
    batch: int = 1,
    cfg_options: dict | None = None,
    overwrite: bool = False,
) -> Inference:
    """Predict an image or the images in a folder, with a classifier, segmentor or detector.

    What is predicted is written at once, so that a run that is interrupted leaves all of it.

    Args:
        config: Config of mmpretrain, mmsegmentation or mmdetection, in training form or deploy form.
        checkpoint: Its checkpoint, in training form or deploy form; a config in training form takes one in deploy form,
            and RepMLPNets convert the other way round.
        images: An image, or a folder, with its subfolders.
        out: Folder to write to: ``predictions.jsonl``, ``model.json`` with what predicted them, ``visualizations/``
            with a picture of each image, under its name, and of models that segment whole images ``maps/`` with the
            labels of all pixels.
        device: Device to compute on. Default: a GPU if there is one.
        score: Score from which on detections are drawn; the file has all. Default: 0.5.
        batch: Number of images to predict at a time. Default: 1.
        cfg_options: Settings of the config to override, by dotted names. Default: None.
        overwrite: Whether the files of an earlier call may be replaced. Default: False.

    Returns:
        What was written. Images that cannot be read are skipped.

    Raises:
        FileNotFoundError: There is no such config, checkpoint, image or folder.
        FileExistsError: ``out`` has predictions and ``overwrite`` is not set.
        ValueError: There is no image, or the checkpoint does not fit the config.
        ImageError: None of the images can be read.
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
    with result.file.open("w") as file:
        starts = range(0, len(paths), batch)
        for start in track(starts, "predictions", console=Console(stderr=True), transient=True):
            for line in predict_batch(predictor, root, paths[start : start + batch], out, score):
                file.write(json.dumps(line) + "\n")
                file.flush()
                if "reason" in line:
                    result.skipped.append(line)
                else:
                    result.predicted += 1
    return result


def check_readable(predictor: Predictor, paths: Sequence[Path]) -> None:
    """Check that an image can be read, the first one as a rule."""
    reason = None
    for path in paths:
        try:
            predictor.read(path)
            return
        except ImageError as error:
            reason = reason or error
    raise ImageError(f"None of the images can be read. {paths[0]}: {reason}.")


def predict_batch(
    predictor: Predictor, root: Path, paths: Sequence[Path], out: Path, score: float
) -> Iterator[dict[str, object]]:
    """Predict images together, write their pictures and maps, and yield each prediction, or why there is none."""
    images, reasons = {}, {}
    for path in paths:
        try:
            images[path] = predictor.read(path)
        except ImageError as error:
            reasons[path] = str(error)
    samples = dict(zip(images, predictor.predict(list(images.values()))))
    for path in paths:
        name = path.relative_to(root).as_posix()
        if path in reasons:
            yield dict(image=name, reason=reasons[path])
            continue
        image, sample = images[path], samples[path]
        result = describe(sample, predictor.model, predictor.name_of)
        picture = f"visualizations/{name}" + ("" if name.lower().endswith(PICTURES) else ".png")
        write_picture(out / picture, predictor.draw(image, sample, score)[..., ::-1])
        for kind in MAPS:
            if kind in result:
                file = f"maps/{name}.png"
                write_picture(out / file, to_picture(kind, result[kind]))
                result[kind] = file
        height, width = image.shape[:2]
        yield dict(image=name, height=height, width=width, visualization=picture, **result)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a BGR or grey picture atomically, in the format of its suffix."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
