# SPDX-License-Identifier: Apache-2.0
"""What the files of a dataset tell that frameworks do not look at."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
from mmengine.dataset import BaseDataset
from PIL import ExifTags, Image

IMAGES = {".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
HIDDEN = (".", "@", "$", "__MACOSX")  # how folders of systems and programs begin, e.g. .ipynb_checkpoints, @eaDir

SWITCH = "check_annotations=False in the config skips this check."
COUNTS_AS_CLASS = "{} counts as a class, but is hidden or has no image. Remove it."
TURNED = (
    "{} is turned where it is read, by its EXIF orientation, and its annotation has the size of the stored image, "
    "{} x {}. Unless it was made on the turned one, set color_type='color_ignore_orientation' of LoadImageFromFile."
)


class AnnotationError(ValueError):
    """Annotations and model do not fit."""


def list_images(dataset: BaseDataset) -> tuple[str | None, list[str], Counter[str]]:
    """List what a dataset lists that numbers folders or takes all images of a folder, without an annotation file.

    Returns:
        The folder, None of other datasets; the folders in it that count as classes and are none: hidden, or without an
        image; and the numbers of images that are not read, by their extensions.
    """
    folder, suffixes = getattr(dataset, "img_prefix", None), tuple(getattr(dataset, "extensions", ()))
    masks, several = None, bool(suffixes)
    if hasattr(dataset, "img_suffix"):
        folder, masks = (dataset.data_prefix.get(name) for name in ("img_path", "seg_map_path"))
        suffixes = (dataset.img_suffix,)
    if not (folder and suffixes and os.path.isdir(folder)) or os.path.isfile(dataset.ann_file):
        return None, [], Counter()
    filled, unread = set(), Counter()
    for place, name in iter_images(folder):
        suffix = os.path.splitext(name)[1]
        if masks and place.startswith(masks.rstrip("/")) and name.endswith(dataset.seg_map_suffix):
            continue
        filled.add(os.path.relpath(place, folder).split(os.sep)[0])
        # One that ends in another way is of another kind, e.g. *_rightImg8bit.png beside *_leftImg8bit.png.
        if not (name.lower() if several else name).endswith((*suffixes, os.path.splitext(f"x{suffixes[0]}")[1])):
            unread[suffix] += 1
    folders = getattr(dataset, "folder_to_idx", ())
    odd = [name for name in folders if name.startswith(HIDDEN) or name not in filled]
    return folder.rstrip("/"), odd, unread


def iter_images(folder: str) -> Iterator[tuple[str, str]]:
    """Iterate over the images in a folder and its subfolders, each with the folder it is in."""
    for place, _, names in os.walk(folder, followlinks=True):
        yield from ((place, n) for n in names if n[0] != "." and os.path.splitext(n)[1].lower() in IMAGES)


def check_mask(path: str, labels: object) -> None:
    """Check that a mask can be read as 8 bits of one channel.

    Raises:
        AnnotationError: It has several channels, or larger labels.
    """
    data = getattr(labels, "data", None)
    if data is not None and data.size(0) != 1:  # mmsegmentation leaves the channels where they are
        raise AnnotationError(f"{path} has {data.size(-1)} channels; a mask has one, the number of the class. {SWITCH}")
    if (largest := largest_label(path)) > 255:
        raise AnnotationError(
            f"{path} has labels up to {largest}, and masks are read with 8 bits, which makes them other classes. "
            f"Number the classes from 0 to 254; 255 is ignored. {SWITCH}"
        )


def largest_label(mask: str) -> int:
    """The largest label in a mask of more than 8 bits; 0 where it has no more."""
    with suppress(OSError), Image.open(mask) as image:
        if image.mode.startswith(("I", "F")):
            return int(np.asarray(image).max())
    return 0


def turned_size(path: str) -> tuple[int, int] | None:
    """Width and height of an image as it is stored, if its EXIF orientation says to turn it; None if not."""
    with suppress(OSError), Image.open(path) as image:
        if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return image.size
    return None


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image."""
    with Image.open(path) as image:
        return image.size


def annotated_sizes(dataset: BaseDataset) -> dict[str, tuple[int, int]]:
    """Width and height of the images of a dataset, as its annotation file has them."""
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return {info["img_path"]: (info["width"], info["height"]) for info in infos if "width" in info}


def iter_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Iterate over the datasets inside wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    for part in getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]:
        if part is not None:
            yield from iter_datasets(part)


def names_in(meta: Mapping) -> list:
    """The names of classes in the metainfo of a dataset or checkpoint; empty where there are none."""
    names = meta.get("classes") or meta.get("CLASSES")
    return list(names) if isinstance(names, (list, tuple)) else []
