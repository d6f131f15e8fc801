# SPDX-License-Identifier: Apache-2.0
"""Predict images of one's own, and write the predictions as pictures and as JSON."""

import json
from dataclasses import dataclass
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
        file: The JSON file.
        predictions: The prediction of each image, as in the file.
        skipped: The images that could not be read, with the reasons.
    """

    file: Path
    predictions: list[dict]
    skipped: list[dict]

    def __str__(self) -> str:
        lines = [f"skipped {item['image']}: {item['reason']}" for item in self.skipped]
        text = "\n".join([*lines, f"{self.file}: predictions for {len(self.predictions)} images"])
        return text.encode(errors="backslashreplace").decode()  # a name may be no text


def infer(
    config: str | Path,
    checkpoint: str | Path,
    images: str | Path,
    out: str | Path,
    device: str | None = None,
    score: float = 0.5,
    cfg_options: dict | None = None,
    overwrite: bool = False,
) -> Inference:
    """Predict an image or the images in a folder, with a classifier, segmentor or detector.

    Args:
        config: Config of mmpretrain, mmsegmentation or mmdetection, in training form or deploy form.
        checkpoint: Its checkpoint, in training form or deploy form; a config in training form takes one in deploy form,
            and RepMLPNets convert the other way round.
        images: An image, or a folder, with its subfolders.
        out: Folder to write to: ``predictions.json``, ``visualizations/`` with a picture of each image, under its name,
            and of models that segment whole images ``maps/`` with the labels of all pixels.
        device: Device to compute on. Default: a GPU if there is one.
        score: Score from which on detections are drawn; the file has all. Default: 0.5.
        cfg_options: Settings of the config to override, by dotted names. Default: None.
        overwrite: Whether the files of an earlier call may be replaced. Default: False.

    Returns:
        The predictions. Images that cannot be read are skipped.

    Raises:
        FileNotFoundError: There is no such config, checkpoint, image or folder.
        FileExistsError: ``out`` has predictions and ``overwrite`` is not set.
        ValueError: There is no image, or the checkpoint does not fit the config.
        ImageError: None of the images can be read.
    """
    out = Path(out)
    file, folders = out / "predictions.json", (out / "visualizations", out / "maps")
    check_overwrite(file, overwrite=overwrite)
    cfg = read_config(config, cfg_options)
    root, paths = find_images(images, folders)
    predictor = Predictor(cfg, checkpoint, device)
    result = Inference(file, [], [])
    for path in track(paths, "predictions", console=Console(stderr=True), transient=True):
        name = path.relative_to(root).as_posix()
        try:
            image = predictor.read(path)
        except ImageError as error:
            result.skipped.append(dict(image=name, reason=str(error)))
        else:
            result.predictions.append(dict(image=name, **predict_image(predictor, image, name, out, score)))
    if not result.predictions:
        raise ImageError(f"None of the images can be read. {paths[0]}: {result.skipped[0]['reason']}.")
    content = dict(
        framework=predictor.framework,
        config=str(config),
        checkpoint=str(checkpoint),
        classes=predictor.classes,
        predictions=result.predictions,
        skipped=result.skipped,
    )
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content))
    return result


def predict_image(predictor: Predictor, image: np.ndarray, name: str, out: Path, score: float) -> dict:
    """Predict an image and write its picture and its maps.

    Returns:
        The prediction as plain data, with the paths of what was written, relative to ``out``.
    """
    sample = predictor.predict(image)
    result = describe(sample, predictor.inferencer, predictor.name_of)
    drawn = predictor.draw(image, sample, score)[..., ::-1]
    picture = f"visualizations/{name}" + ("" if name.lower().endswith(PICTURES) else ".png")
    write_picture(out / picture, drawn)
    for kind in MAPS:
        if kind in result:
            file = f"maps/{name}.png"
            write_picture(out / file, to_picture(kind, result[kind]))
            result[kind] = file
    height, width = image.shape[:2]
    return dict(height=height, width=width, visualization=picture, **result)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a BGR or grey picture atomically, in the format of its suffix."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
