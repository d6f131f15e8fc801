# SPDX-License-Identifier: Apache-2.0
"""Find images, read them as a config does, and report those that are broken."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmrepmlp.engine.hooks.annotation_files import IMAGES, iter_images
from mmrepmlp.errors import MMRepMLPError


class ImageError(MMRepMLPError):
    """Raised for a file that cannot be read as an image."""


def find_images(path: str | Path, written: tuple[Path, ...] = ()) -> tuple[Path, list[Path]]:
    """Find an image, or all images in a folder and its subfolders, except for hidden files.

    Args:
        path: An image or a folder.
        written: Folders to skip, since images are written to them. Default: ().

    Returns:
        The folder that names are relative to, and the images, sorted.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: There is no image.
    """
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
        raise ValueError(f"{path} has no images besides those written here: expected files that end in {kinds}.")
    return root, images


def read_image(path: Path, load: Callable[[dict], dict | None]) -> np.ndarray:
    """Read an image with the loading transform of a pipeline, usually as BGR (H, W, 3), uint8.

    Raises:
        ImageError: The file is empty, truncated or not an image.
    """
    try:
        if not path.stat().st_size:
            raise ImageError("the file is empty")
        check_complete(path)
        return load(dict(img_path=str(path)))["img"]
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except Exception as error:  # arbitrary bytes may raise anything in a decoder
        raise ImageError("it is not an image that the config can load") from error


def check_complete(path: Path) -> None:
    """Reject a truncated image, whose missing part OpenCV would fill with gray."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # Pillow's warning about large images
            image.load()
    except Exception as error:  # other images that Pillow cannot read may suit the config's reader
        known = not isinstance(error, Image.UnidentifiedImageError)
        if known and any(word in str(error) for word in ("runcated", "broken data", "unrecognized data")):
            raise ImageError(str(error)) from error


def image_loader(pipeline: list[dict], build: Callable[[dict], Callable]) -> Callable[[dict], dict | None]:
    """Return the transform of a test pipeline that loads images, or mmcv's default if the dataset loads them."""
    for step in pipeline:
        if is_loader(step):
            # The images are on the local disk, wherever the dataset is.
            transform = build({key: step[key] for key in step if key not in ("backend_args", "file_client_args")})
            if isinstance(transform, LoadImageFromFile):
                return transform
    return LoadImageFromFile()


def is_loader(step: dict) -> bool:
    """Whether a step of a pipeline loads an image or annotations from files."""
    return str(step["type"]).rpartition(".")[2].startswith("Load")


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an image of any number of channels and any range to RGB (H, W, 3), uint8, to draw on."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    if image.dtype != np.uint8 and image.max(initial=0) > 255:  # more than 8 bits
        image = image * (255 / image.max())
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
