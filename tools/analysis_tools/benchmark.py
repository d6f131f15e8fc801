# SPDX-License-Identifier: Apache-2.0
"""Measure RepMLPNet beside mmpretrain's, both forms, in one process: medians of interleaved calls, peak memory. With
--sizes measure what images of several sizes cost instead, with --parts what the deploy form's time is made of."""

import argparse
import json

from rich.console import Console

from mmrepmlp.apis import benchmark_parts, benchmark_repmlpnet, benchmark_sizes
from mmrepmlp.apis.benchmark_runtimes import RUNTIMES
from mmrepmlp.checkpoint import atomic_write


def image_size(text: str) -> tuple[int, int]:
    """Height and width from SIDE or HEIGHTxWIDTH."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=["T", "B", "D", "L"], default="B", help="default: %(default)s")
    parser.add_argument("--img-size", type=int, default=224, help="side of one tile, pixels (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: torch's choice)")
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=15, help="counted calls of each model (default: %(default)s)")
    parser.add_argument("--json", help="file to write the figures to as well")
    parser.add_argument("--plot", help="picture of the figures to write, PNG")
    pair = parser.add_argument_group("beside mmpretrain's, on images of --img-size")
    pair.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="numbers of images (default: 1 8)")
    pair.add_argument("--training-step", action="store_true", help="whole training steps instead of forward passes")
    pair.add_argument(
        "--runtimes",
        nargs="+",
        choices=list(RUNTIMES),
        default=[],
        help="the deploy form in these, instead of both forms in eager PyTorch",
    )
    parser.add_argument_group("of the deploy form, for each of --batches and --sizes").add_argument(
        "--parts", action="store_true", help="what the time is made of"
    )
    sweep = parser.add_argument_group("over image sizes")
    sweep.add_argument(
        "--sizes", type=image_size, nargs="+", metavar="SIZE", help="sizes of the images, as SIDE or HEIGHTxWIDTH"
    )
    args = parser.parse_args()
    common = dict(arch=args.arch, img_size=args.img_size, threads=args.threads, dtype=args.dtype, repeats=args.repeats)
    if args.parts:
        sizes = args.sizes or [(args.img_size, args.img_size)]
        benchmark = benchmark_parts(sizes=sizes, batches=args.batches, **common)
    elif args.sizes:
        benchmark = benchmark_sizes(sizes=args.sizes, **common)
    else:
        benchmark = benchmark_repmlpnet(
            batches=args.batches, training_step=args.training_step, runtimes=args.runtimes, **common
        )
    Console().print(benchmark.table())
    if args.json:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(benchmark.as_dict(), indent=2) + "\n")
    if args.plot:
        benchmark.plot(args.plot)


if __name__ == "__main__":
    main()
