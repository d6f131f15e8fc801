# SPDX-License-Identifier: Apache-2.0
"""Measure RepMLPNet beside mmpretrain's, both forms, in one process: medians of interleaved calls, peak memory."""

import argparse
import json

from rich.console import Console

from mmrepmlp.apis import benchmark_repmlpnet
from mmrepmlp.checkpoint import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=["T", "B", "D", "L"], default="B", help="default: %(default)s")
    parser.add_argument("--img-size", type=int, default=224, help="side of the images, pixels (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="numbers of images (default: 1 8)")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: torch's choice)")
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=15, help="counted calls of each model (default: %(default)s)")
    parser.add_argument("--training-step", action="store_true", help="whole training steps instead of forward passes")
    parser.add_argument("--json", help="file to write the figures to as well")
    args = vars(parser.parse_args())
    path = args.pop("json")
    benchmark = benchmark_repmlpnet(**args)
    Console().print(benchmark.table())
    if path:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(benchmark.as_dict(), indent=2) + "\n")


if __name__ == "__main__":
    main()
