# SPDX-License-Identifier: Apache-2.0
"""Draw what a segmentor predicts in training form and in deploy form, side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from matplotlib.figure import Figure
from mmseg.apis import inference_model, init_model

from mmrepmlp import switch_to_deploy

OPACITY = 0.6  # of the colors of the classes over the image


def draw_forms(config: str, checkpoint: str, images: Sequence[str], out: str | Path) -> float:
    """Draw images, and the classes of their pixels in both forms.

    Args:
        config: Config of a segmentor in training form.
        checkpoint: Its checkpoint.
        images: Paths of images.
        out: Picture to write.

    Returns:
        The share of the pixels that have the same class in both forms.
    """
    model = init_model(config, checkpoint, device="cpu")
    palette = np.array(model.dataset_meta["palette"], dtype=np.uint8)
    before = [predict(model, path) for path in images]
    switch_to_deploy(model)
    after = [predict(model, path) for path in images]
    figure = Figure(figsize=(9, 2.5 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    for row, path, *forms in zip(axes, images, before, after):
        image = mmcv.imread(path, channel_order="rgb")
        shown = [image, *((1 - OPACITY) * image + OPACITY * palette[classes] for classes in forms)]
        for axis, picture in zip(row, shown):
            axis.imshow(picture.astype(np.uint8), interpolation="nearest")
            axis.axis("off")
    for axis, title in zip(axes[0], ("image", "training form", "deploy form")):
        axis.set_title(title)
    figure.savefig(out, dpi=100)
    return float(np.mean([np.equal(a, b).mean() for a, b in zip(before, after)]))


def predict(model: object, path: str) -> np.ndarray:
    """The class of each pixel, shape (H, W)."""
    return inference_model(model, path).pred_sem_seg.data[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a segmentor in training form")
    parser.add_argument("checkpoint", help="its checkpoint")
    parser.add_argument("images", nargs="+", help="images")
    parser.add_argument("--out", required=True, metavar="PICTURE", help="picture to write")
    print(f"{draw_forms(**vars(parser.parse_args())):.2%} of the pixels have the same class in both forms.")


if __name__ == "__main__":
    main()
