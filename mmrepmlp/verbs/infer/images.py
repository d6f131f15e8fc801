# SPDX-License-Identifier: Apache-2.0
"""Find images, read them as a config does, and tell what is broken."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmrepmlp.errors import MMRepMLPError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageError(MMRepMLPError):
    """A file cannot be read as an image."""


def find_images(path: str | Path, written: tuple[Path, ...] = ()) -> tuple[Path, list[Path]]:
    """Find the image that a path names, or all images in a folder and its subfolders, without hidden files.

    Args:
        path: A file of any name, or a folder.
        written: Folders to leave out, since results are written to them. Default: none.

    Returns:
        The folder that names are relative to, and the images, sorted.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no image.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no image or folder at {path}.")
    root, files = (path, sorted(walk(path))) if path.is_dir() else (path.parent, [path])
    outputs = [folder.resolve() for folder in written]
    images = [file for file in files if not any(file.resolve().is_relative_to(folder) for folder in outputs)]
    if not images:
        kinds = ", ".join(SUFFIXES)
        raise ValueError(f"{path} holds no image besides those that are written: expected files that end in {kinds}.")
    return root, images


def walk(folder: Path) -> Iterator[Path]:
    """Iterate over the images in a folder and its subfolders, symbolic links included."""
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES))
        yield from (Path(place, name) for name in names)


def read_image(path: Path, load: Callable[[dict], dict | None]) -> np.ndarray:
    """Read an image.

    Args:
        path: The file.
        load: The transform of the config's test pipeline that loads images.

    Returns:
        What the transform gives, usually BGR, shape (H, W, 3), uint8.

    Raises:
        ImageError: The file cannot be read, is empty, truncated, or not an image; the message says which.
    """
    try:
        if not path.stat().st_size:
            raise ImageError("the file is empty")
        check_complete(path)
        loaded = load(dict(img_path=str(path)))
        return loaded["img"]
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except Exception as error:  # of whatever the bytes made the reader do
        raise ImageError("it is not an image that the config can load") from error


def check_complete(path: Path) -> None:
    """Check that all of an image is there: OpenCV fills what is missing with grey.

    Raises:
        ImageError: Something is missing, or damaged.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of large images, which are welcome
            image.load()
    except Image.UnidentifiedImageError:  # the config's reader may know it
        return
    except OSError as error:
        if any(word in str(error) for word in ("runcated", "broken data", "unrecognized data")):
            raise ImageError(str(error)) from error
    except Exception:  # what Pillow cannot read for other reasons, the config's reader may
        return


def image_loader(pipeline: list[dict], build: Callable[[dict], Callable]) -> Callable[[dict], dict | None]:
    """The transform of a test pipeline that loads images from files, or the usual one where the dataset does it."""
    for step in pipeline:
        if str(step["type"]).rpartition(".")[2].startswith("Load"):
            # The images are on this disk, wherever the dataset is.
            transform = build({key: step[key] for key in step if key not in ("backend_args", "file_client_args")})
            if isinstance(transform, LoadImageFromFile):
                return transform
    return LoadImageFromFile()


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an image of any number of channels and any range to RGB, shape (H, W, 3), uint8, to draw on."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    if image.dtype != np.uint8 and image.max(initial=0) > 255:  # more than 8 bits
        image = image * (255 / image.max())
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
