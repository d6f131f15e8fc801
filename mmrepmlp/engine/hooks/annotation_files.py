# SPDX-License-Identifier: Apache-2.0
"""Checks of the files of a dataset that frameworks do not make."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import ExifTags, Image
from torch import Tensor

IMAGES = (".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HIDDEN = (".", "@", "$", "__MACOSX")  # prefixes of folders that programs make, e.g. .ipynb_checkpoints, @eaDir

SWITCH = "check_annotations=False in the config skips this check."
ROTATED = (
    "{} is rotated when it is read, by its EXIF orientation, but its annotation has the size of the stored image, "
    "{} x {}. Unless it was made on the rotated one, set color_type='color_ignore_orientation' in LoadImageFromFile."
)


class AnnotationError(ValueError):
    """The annotations do not fit the model."""


def list_images(dataset: BaseDataset) -> tuple[str | None, list[str], Counter[str]]:
    """List the folders and images of a dataset that numbers folders or takes all images of a folder, without an
    annotation file.

    Returns:
        The folder, or None for other datasets; the folders in it that count as classes, but are hidden or have no
        image; and the number of images that are not read, by extension.
    """
    folder, suffixes = getattr(dataset, "img_prefix", None), list(getattr(dataset, "extensions", ()))
    any_case = bool(suffixes)
    if hasattr(dataset, "img_suffix"):
        folder, masks = (dataset.data_prefix.get(name) or "" for name in ("img_path", "seg_map_path"))
        suffixes = [dataset.img_suffix, *([dataset.seg_map_suffix] if masks.startswith(folder) else [])]
    if not (folder and suffixes and os.path.isdir(folder)) or os.path.isfile(dataset.ann_file):
        return None, [], Counter()
    # Images with another suffix have another purpose, e.g. *_rightImg8bit.png beside *_leftImg8bit.png.
    read = {os.path.splitext(f"x{suffix}")[1] for suffix in suffixes}
    filled, unread = set(), Counter()
    for place, names in iter_images(folder):
        if names:
            filled.add(os.path.relpath(place, folder).split(os.sep)[0])
        kinds = Counter(os.path.splitext(name)[1] for name in names)
        unread.update({kind: n for kind, n in kinds.items() if (kind.lower() if any_case else kind) not in read})
    folders = getattr(dataset, "folder_to_idx", ())
    odd = [name for name in folders if name.startswith(HIDDEN) or name not in filled]
    return folder.rstrip("/"), odd, unread


def iter_images(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Iterate over a folder and its subfolders, links included, with the names of the images in each that are not
    hidden."""
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, [name for name in files if not name.startswith(".") and name.lower().endswith(IMAGES)]


def check_mask(path: str, labels: Tensor) -> None:
    """Reject a mask with several channels, or with labels above the 8 bits that mmsegmentation reads."""
    if labels.size(0) != 1:
        raise AnnotationError(
            f"{path} has {labels.size(-1)} channels; a mask needs one, with the number of the class. {SWITCH}"
        )
    with Image.open(path) as image:
        largest = np.asarray(image).max() if image.mode.startswith(("I", "F")) else 0
    if largest > 255:
        raise AnnotationError(
            f"{path} has labels up to {largest}, but masks are read with 8 bits, which makes them other classes. "
            f"Number the classes from 0 to 254; 255 is ignored. {SWITCH}"
        )


def explain_rotation(dataset: object, path: str, mask: str | None) -> str | None:
    """Warn about an image that is rotated by its EXIF orientation when it is read.

    Returns:
        The warning, empty unless the mask or the annotation file has the size of the stored image; None for an image
        that is not rotated.
    """
    with Image.open(path) as image:
        if "exif" not in image.info or image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return None
        stored = image.size
    if mask:
        with Image.open(mask) as image:
            annotated = image.size
    else:
        infos = (part.get_data_info(index) for part in iter_datasets(dataset) for index in range(len(part)))
        annotated = next(((info["width"], info["height"]) for info in infos if info["img_path"] == path), None)
    return ROTATED.format(path, *stored) if annotated == stored else ""


def iter_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Iterate over the datasets inside wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    for part in getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]:
        if part is not None:
            yield from iter_datasets(part)
