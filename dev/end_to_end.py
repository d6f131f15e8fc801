# SPDX-License-Identifier: Apache-2.0
"""Measure how many images a second go from files to predictions, beside what the network alone would do."""

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch

from dev.command import make_parser, measure_and_report
from dev.startup import Start
from mmrepmlp import apis
from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.verbs.benchmark.hardware import Hardware
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.infer.predictor import Predictor
from mmrepmlp.verbs.model import build_untrained

CONFIG = Path(__file__).parents[1] / "configs/repmlpnet/repmlpnet-b224_8xb32_in1k.py"
PRECISIONS = ("float32", "bfloat16")
FILES, ALONE, SHARE = "from files", "alone", "share, %"  # images per second, and the share of the former
FIRST = "one image, s"  # a whole process
DEPLOY_FORM = "model.backbone.deploy"


def write_jpegs(folder: Path, number: int, size: tuple[int, int] = (375, 500)) -> list[Path]:
    """Write JPEG images with coarse shapes and noise, about as large in bytes as photographs."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{index:04d}.jpg" for index in range(number)]
    for path in paths:
        shapes = cv2.resize(
            generator.integers(0, 256, (12, 16, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC
        )
        noise = generator.integers(-12, 13, shapes.shape)
        cv2.imwrite(str(path), (shapes + noise).clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def load_program(folder: Path) -> ModuleType:
    """Import the ``run.py`` of a deployed folder."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def images_per_second(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Time calls in turn, after one that is not counted; each returns a number of images."""
    rates = {name: [] for name in calls}
    for turn in range(1 + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            rate = call() / (time.perf_counter() - start)
            rates[name] += [rate] if turn else []
    return {name: statistics.median(found) for name, found in rates.items()}


def seconds_of(*arguments: object, repeats: int) -> float:
    """Return the median time of a Python process."""
    command = Start([sys.executable, *map(str, arguments)])
    return statistics.median(command.run() for _ in range(repeats))


@torch.inference_mode()
def measure_infer(config: Path, checkpoint: Path, paths: Sequence[Path], batch: int, repeats: int) -> dict[str, float]:
    """Measure ``mmrepmlp infer --no-visualizations`` from file to prediction, and the network in the same batches."""
    predictor = Predictor(read_config(config, {DEPLOY_FORM: True}), checkpoint, "cpu")
    inputs = torch.randn(batch, 3, 224, 224)

    def network_alone() -> int:
        return sum(len(predictor.model.backbone(inputs)[0]) for _ in range(len(paths) // batch))

    calls = {FILES: lambda: sum(1 for _ in predictor.stream(paths, batch)), ALONE: network_alone}
    return images_per_second(calls, repeats)


def measure_end_to_end(
    config: str | Path = CONFIG,
    precisions: Sequence[str] = PRECISIONS,
    images: int = 64,
    batch: int = 8,
    threads: int = 2,
    repeats: int = 5,
) -> BenchmarkReport:
    """Measure a classifier with random weights: deployed folders by their ``run.py``, and ``mmrepmlp infer``.

    Args:
        config: The config of the classifier. Default: RepMLPNet-B224 on ImageNet.
        precisions: Precisions to deploy to OpenVINO in. Default: float32 and bfloat16.
        images: Number of images, of 500 by 375 pixels. Default: 64.
        batch: Batch size of ``mmrepmlp infer``. Default: 8.
        threads: Number of threads. Default: 2.
        repeats: Timed passes over the images. Default: 5.

    Raises:
        DeploymentError: The network cannot be deployed.
    """
    hardware = Hardware(threads=threads)
    hardware.prepare()
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        jpegs, checkpoint = Path(folder, "images"), Path(folder, "random.pth")
        jpegs.mkdir()
        paths = write_jpegs(jpegs, images)
        model = build_untrained(read_config(config))
        torch.nn.init.normal_(model.head.fc.bias)  # predictions that rounding does not change, as of trained weights
        save_checkpoint(dict(meta={}, state_dict=model.state_dict()), checkpoint)
        for precision in precisions:
            out = Path(folder, precision)
            apis.deploy_checkpoint(config, checkpoint, out, precision=precision)
            program = load_program(out)
            files, alone = program.benchmark_folder(program.Network(out, threads, many=True), jpegs, repeats)
            first = seconds_of(out / "run.py", paths[0], repeats=repeats)
            row = {"model": "run.py", "task": f"openvino {precision}"}
            rows.append({**row, FILES: files, ALONE: alone, FIRST: first})
        rates = measure_infer(Path(config), checkpoint, paths, batch, repeats)
        command = ("-m", "mmrepmlp", "infer", config, checkpoint, paths[0], "--out", "{folder}", "--device", "cpu")
        first = seconds_of(*command, "--no-visualizations", "--cfg-options", f"{DEPLOY_FORM}=True", repeats=repeats)
        rows.append({"model": "mmrepmlp infer", "task": f"eager float32, batch {batch}", **rates, FIRST: first})
    for row in rows:
        row[SHARE] = 100 * row[FILES] / row[ALONE]
    return BenchmarkReport(dict(repeats=repeats, **hardware.environment()), rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, help="default: 2")
    parser.add_argument("--repeats", type=int, help="timed passes over the images (default: 5)")
    measure_and_report(parser, measure_end_to_end)


if __name__ == "__main__":
    main()
