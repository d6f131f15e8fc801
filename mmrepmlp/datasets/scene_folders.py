# SPDX-License-Identifier: Apache-2.0
"""Write scenes of digits to disk, in the layouts that mmsegmentation and mmdetection read."""

import json
from pathlib import Path

import cv2
import mmcv
import numpy as np

from mmrepmlp.checkpoint import atomic_folder, check_overwrite

from .compose import compose_all
from .scenes import compose_scene

COUNTS = dict(train=8000, val=400)


def write_segmentation_scenes(out_dir: str | Path, overwrite: bool = False, counts: dict = COUNTS) -> dict:
    """Write scenes with class maps, ``img_dir/{train,val}/*.jpg`` and ``ann_dir/{train,val}/*.png``.

    ``counts`` are the numbers of scenes in ``train`` and ``val``, which use disjoint sets of scans; they are returned.
    """
    check_overwrite(out_dir, overwrite=overwrite)
    with atomic_folder(out_dir, durable=False) as folder:
        for split, number in counts.items():
            for name, scene in compose_all(compose_scene, split, number):
                mmcv.imwrite(scene.image, str(folder / "img_dir" / split / f"{name}.jpg"))
                mmcv.imwrite(scene.class_map(), str(folder / "ann_dir" / split / f"{name}.png"))
    return dict(counts)


def write_detection_scenes(out_dir: str | Path, overwrite: bool = False, counts: dict = COUNTS) -> dict:
    """Write the same scenes with boxes and polygons, ``{train,val}/*.jpg`` and ``annotations/{train,val}.json``
    (COCO)."""
    check_overwrite(out_dir, overwrite=overwrite)
    with atomic_folder(out_dir, durable=False) as folder:
        (folder / "annotations").mkdir()
        for split, number in counts.items():
            images, annotations = [], []
            for name, scene in compose_all(compose_scene, split, number):
                file = f"{name}.jpg"
                mmcv.imwrite(scene.image, str(folder / split / file))
                height, width = scene.image.shape[:2]
                image = dict(id=len(images), file_name=file, height=height, width=width)
                images.append(image)
                for digit, mask in zip(scene.digits, scene.masks):
                    annotations.append(dict(id=len(annotations) + 1, image_id=image["id"], **to_coco(digit, mask)))
            categories = [dict(id=digit, name=str(digit)) for digit in range(10)]
            coco = dict(images=images, annotations=annotations, categories=categories)
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    return dict(counts)


def to_coco(digit: int, mask: np.ndarray) -> dict:
    """Make a digit's COCO annotation: box and polygons around its visible ink."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [contour.flatten().tolist() for contour in contours if len(contour) >= 3]
    area = int(mask.sum())
    return dict(category_id=digit, bbox=[x, y, width, height], area=area, segmentation=polygons, iscrowd=0)
