# SPDX-License-Identifier: Apache-2.0
"""Find images, read them as a config does, and tell what is broken."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmrepmlp.engine.hooks.annotation_files import IMAGES, iter_images
from mmrepmlp.errors import MMRepMLPError


class ImageError(MMRepMLPError):
    """A file cannot be read as an image."""


def find_images(path: str | Path, written: tuple[Path, ...] = ()) -> tuple[Path, list[Path]]:
    """Find the image that a path names, or all images in a folder and its subfolders, without hidden files: the folder
    that names are relative to, and the images, sorted, but for those in folders that are written to."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no image or folder at {path}.")
    root, files = path.parent, [path]
    if path.is_dir():
        root, files = path, sorted(Path(place, name) for place, names in iter_images(path) for name in names)
    outputs = [folder.resolve() for folder in written]
    images = [file for file in files if not any(file.resolve().is_relative_to(folder) for folder in outputs)]
    if not images:
        kinds = ", ".join(IMAGES)
        raise ValueError(f"{path} holds no image besides those that are written: expected files that end in {kinds}.")
    return root, images


def read_image(path: Path, load: Callable[[dict], dict | None]) -> np.ndarray:
    """Read an image by the transform of a pipeline that loads images, usually as BGR, shape (H, W, 3), uint8."""
    try:
        if not path.stat().st_size:
            raise ImageError("the file is empty")
        check_complete(path)
        return load(dict(img_path=str(path)))["img"]
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except Exception as error:  # of whatever the bytes made the reader do
        raise ImageError("it is not an image that the config can load") from error


def check_complete(path: Path) -> None:
    """Reject an image of which something is missing, which OpenCV fills with grey."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of large images, which are welcome
            image.load()
    except Exception as error:  # what Pillow cannot read for other reasons, the config's reader may
        known = not isinstance(error, Image.UnidentifiedImageError)
        if known and any(word in str(error) for word in ("runcated", "broken data", "unrecognized data")):
            raise ImageError(str(error)) from error


def image_loader(pipeline: list[dict], build: Callable[[dict], Callable]) -> Callable[[dict], dict | None]:
    """The transform of a test pipeline that loads images from files, or the usual one where the dataset does it."""
    for step in pipeline:
        if is_loader(step):
            # The images are on this disk, wherever the dataset is.
            transform = build({key: step[key] for key in step if key not in ("backend_args", "file_client_args")})
            if isinstance(transform, LoadImageFromFile):
                return transform
    return LoadImageFromFile()


def is_loader(step: dict) -> bool:
    """Whether a step of a pipeline loads an image or annotations from files."""
    return str(step["type"]).rpartition(".")[2].startswith("Load")


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an image of any number of channels and any range to RGB, shape (H, W, 3), uint8, to draw on."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    if image.dtype != np.uint8 and image.max(initial=0) > 255:  # more than 8 bits
        image = image * (255 / image.max())
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
