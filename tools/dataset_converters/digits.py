# SPDX-License-Identifier: Apache-2.0
"""Write a data set of scikit-learn's handwritten digits, 1,797 real scans, for classification (cls, and harder:
sheets; the ImageNet folder layout), segmentation (scenes with class maps) or detection (the same scenes in COCO's
format)."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "--overwrite")
    parser.add_argument("--task", choices=["cls", "sheets", "seg", "det"], help="default: cls")
    parser.add_argument("--out", help="folder to write (default: data/digits, or data/digits_TASK)")
    folder, counts = run_tool(parser, "write_dataset")
    print(f"{folder}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))


if __name__ == "__main__":
    main()
