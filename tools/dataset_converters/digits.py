# SPDX-License-Identifier: Apache-2.0
"""Write a data set of scikit-learn's handwritten digits, 1,797 real scans, for classification (the ImageNet folder
layout), segmentation (scenes with class maps) or detection (the same scenes in COCO's format)."""

import argparse
import sys

from mmrepmlp.datasets import write_detection_scenes, write_digits, write_segmentation_scenes

WRITERS = dict(cls=write_digits, seg=write_segmentation_scenes, det=write_detection_scenes)
FOLDERS = dict(cls="data/digits", seg="data/digits_seg", det="data/digits_det")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=WRITERS, default="cls", help="default: %(default)s")
    parser.add_argument("--out", help="folder to write (default: data/digits, data/digits_seg or data/digits_det)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    args = parser.parse_args()
    out = args.out or FOLDERS[args.task]
    try:
        counts = WRITERS[args.task](out, args.overwrite)
    except (OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"{out}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))


if __name__ == "__main__":
    main()
