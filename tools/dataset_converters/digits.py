# SPDX-License-Identifier: Apache-2.0
"""Write a dataset of scikit-learn's handwritten digits (1,797 real scans) for classification (cls, or sheets, which is
harder; in ImageNet's folder layout), segmentation (scenes with class maps) or detection (the same scenes in COCO
format)."""

from mmrepmlp.cli import Parser, parse_and_run


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add("--task", choices=["cls", "sheets", "seg", "det"], help="task (default: cls)")
    parser.add("--out", help="folder to write (default: data/digits, or data/digits_TASK)")
    parser.add_all("--overwrite", "--traceback")
    parser.set_defaults(run=write)
    return parser


def write(**arguments) -> None:
    from mmrepmlp.datasets import write_dataset

    folder, counts = write_dataset(**arguments)
    print(f"{folder}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))


if __name__ == "__main__":
    parse_and_run(make_parser())
