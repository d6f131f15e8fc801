# SPDX-License-Identifier: Apache-2.0
"""Draw what a segmentor or detector sees in its first test images: image, truth and prediction side by side."""

import argparse

from mmrepmlp.apis import draw_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("out", help="picture to write, PNG")
    parser.add_argument("--images", type=int, default=6, help="number of images (default: %(default)s)")
    parser.add_argument("--score", type=float, default=0.5, help="least score of a detection (default: %(default)s)")
    draw_predictions(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
