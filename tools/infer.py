# SPDX-License-Identifier: Apache-2.0
"""Predict images of your own with a model of mmpretrain, mmsegmentation or mmdetection, in either form.

DIR/predictions.json gets the predictions, DIR/visualizations/ a picture of each image under its name, and DIR/maps/ the
labels of all pixels where the model segments. Images that cannot be read are reported and skipped."""

from mmrepmlp.cli import run_tool, tool_parser


def main() -> None:
    parser = tool_parser(__doc__, "config", "checkpoint", "--cfg-options", "--overwrite")
    parser.add_argument("images", metavar="image_or_folder", help="an image, or a folder with images in any depth")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--device", help="device to compute on, e.g. cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--score", type=float, help="score from which on detections are drawn (default: 0.5)")
    print(run_tool(parser, "infer"))


if __name__ == "__main__":
    main()
