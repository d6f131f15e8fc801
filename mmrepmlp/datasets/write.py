# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from .digits import write_digits
from .scene_folders import write_detection_scenes, write_segmentation_scenes
from .sheets import write_sheets

WRITERS = {
    "cls": (write_digits, "data/digits"),
    "sheets": (write_sheets, "data/digits_sheets"),
    "seg": (write_segmentation_scenes, "data/digits_seg"),
    "det": (write_detection_scenes, "data/digits_det"),
}


def write_dataset(
    task: str = "cls", out: str | Path | None = None, overwrite: bool = False
) -> tuple[Path, dict[str, int]]:
    """Write the dataset of digits for a task.

    Args:
        task: ``"cls"`` (the ImageNet folder layout), ``"sheets"`` (harder, the same layout), ``"seg"`` (scenes with
            class maps) or ``"det"`` (the same scenes in COCO's format). Default: "cls".
        out: Folder to create. Default: ``data/digits``, ``data/digits_sheets``, ``data/digits_seg`` or
            ``data/digits_det``, where the configs look.
        overwrite: Whether an existing folder may be replaced. Default: False.

    Returns:
        The folder, and the number of images in each split.

    Raises:
        FileExistsError: The folder exists and ``overwrite`` is not set.
        ValueError: There is no such task.
    """
    if task not in WRITERS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(WRITERS)}.")
    write, default = WRITERS[task]
    folder = Path(out or default)
    return folder, write(folder, overwrite)
