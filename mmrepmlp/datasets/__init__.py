# SPDX-License-Identifier: Apache-2.0
from .digits import split_digits, write_digits
from .scene_folders import write_detection_scenes, write_segmentation_scenes
from .scenes import Scene, compose_scene
from .sheets import compose_sheet, write_sheets
from .write import write_dataset

__all__ = [
    "Scene",
    "compose_scene",
    "compose_sheet",
    "split_digits",
    "write_dataset",
    "write_detection_scenes",
    "write_digits",
    "write_segmentation_scenes",
    "write_sheets",
]
