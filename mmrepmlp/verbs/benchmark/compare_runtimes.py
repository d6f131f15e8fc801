# SPDX-License-Identifier: Apache-2.0
"""Benchmark the deploy form in many runtimes."""

import statistics
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import image_channels
from mmrepmlp.reparam import distance, named_tensors, switch_to_deploy
from mmrepmlp.verbs.benchmark.compare import OURS, THEIRS, build_pair, convert, same_bottlenecks
from mmrepmlp.verbs.benchmark.hardware import CPU, Hardware
from mmrepmlp.verbs.benchmark.measure import interleave, reference_matmuls
from mmrepmlp.verbs.benchmark.runtime_report import RuntimeBenchmark, RuntimeMeasurement
from mmrepmlp.verbs.benchmark.runtimes import RUNTIMES, Call, Workload, is_reduced
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.model import build_untrained

TOLERANCE, TF32_TOLERANCE = 1e-4, 0.1


@dataclass
class Attempt:
    """A network in a runtime: what to call, and the error of its outputs; or the reason why it does not run."""

    call: Call | None = None
    error: float | None = None
    reason: str | None = None


def benchmark_runtimes(
    arch: str | dict | None = None,
    img_size: int | None = None,
    config: str | Path | None = None,
    size: tuple[int, int] | None = None,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    batches: Sequence[int] | None = None,
    repeats: int = 15,
    hardware: Hardware = CPU,
) -> RuntimeBenchmark:
    """Benchmark deploy forms in several runtimes, in interleaved calls in one process.

    The networks are mmpretrain's RepMLPNet and this package's with the same weights, or the whole model of a config,
    with random weights, up to its raw outputs.

    Args:
        arch: Letter of the architecture, or its settings as a dict. Default: B.
        img_size: Height and width of the images in pixels. Default: 224.
        config: Path of a config file, or ``package::path``, instead of ``arch`` and ``img_size``. Default: None.
        size: With ``config``, height and width of the images in pixels. Default: None.
        runtimes: Names from :data:`~mmrepmlp.verbs.benchmark.runtimes.RUNTIMES`. Default: all.
        batches: Batch sizes. Default: (1, 8); (1,) with ``config``.
        repeats: Timed calls of each network in each runtime. Default: 15.
        hardware: Where and how PyTorch computes; the other runtimes compute on the CPU. Default: the CPU.

    Returns:
        Medians, errors and peak memory. A runtime that is not installed, or that cannot run a network, has the reason
        in its row.

    Raises:
        ValueError: Arguments contradict each other, or a runtime is unknown.
        ImportError: mmpretrain is not installed, or with ``config`` what export needs.
        MMRepMLPError: The model does not run on such images, or two runtimes in float32 compute different outputs.
    """
    unknown = sorted(set(runtimes) - set(RUNTIMES))
    if unknown:
        raise ValueError(f"runtimes={', '.join(unknown)}: expected some of {', '.join(RUNTIMES)}.")
    if (config is None) != (size is None) or (config and (arch or img_size)):
        raise ValueError(
            f"config={config}, size={size}, arch={arch}, img_size={img_size}: expected config and size together, or "
            "any of arch and img_size. Pass --config with --size for the whole model of a config, or --arch and "
            "--img-size for a RepMLPNet."
        )
    hardware.prepare()
    if config:
        networks, settings = build_whole(config), dict(config=str(config), size=f"{size[0]}x{size[1]}")
    else:
        arch, img_size = arch or "B", img_size or 224
        size, settings = (img_size, img_size), dict(arch=f"RepMLPNet-{arch}{img_size}")
        theirs, ours = build_pair(arch, img_size, torch.float32)
        networks = {THEIRS: convert(theirs), OURS: convert(ours)}
    networks = {name: hardware.place(network) for name, network in networks.items()}
    tolerance = TF32_TOLERANCE if hardware.tf32 else TOLERANCE
    rows = []
    for batch in batches or ((1,) if config else (1, 8)):
        images = hardware.place(torch.randn(batch, image_channels(networks[OURS]), *size))
        with tempfile.TemporaryDirectory() as folder:
            attempts = attempt_all(networks, runtimes, images, Path(folder), tolerance)
            rows += measure(attempts, batch, repeats, f"{next(iter(settings.values()))}, batch {batch}", hardware)
    return RuntimeBenchmark({**settings, "form": "deploy form", "repeats": repeats, **hardware.environment()}, rows)


def build_whole(config: str | Path) -> dict[str, nn.Module]:
    """The model of a config in deploy form, as a function of images, with random weights."""
    from mmrepmlp.export.network import NamedOutputs

    return {OURS: NamedOutputs(switch_to_deploy(build_untrained(load_config(config)).eval())).eval()}


@torch.inference_mode()
def attempt_all(
    networks: dict[str, nn.Module], runtimes: Sequence[str], images: Tensor, folder: Path, tolerance: float
) -> dict[tuple[str, str], Attempt]:
    """Build each network in each runtime, and compare its outputs with those of ours in eager float32.

    Raises:
        MMRepMLPError: Ours does not run on such images, or a runtime in float32 computes other outputs.
    """
    try:
        expected = networks[OURS](images)
    except Exception as error:
        raise MMRepMLPError(
            f"The model does not run on images of shape {tuple(images.shape)} alone ({describe(error)}). Pass another "
            "--size, or the --config of a classifier, a segmentor or a detector of one stage."
        ) from error
    torch.compiler.reset()  # dynamo keeps the code of eight networks of one class, and runs others in eager mode
    attempts = {}
    for name, network in networks.items():
        (folder / name).mkdir()
        workload = Workload(network, images, folder / name)
        has_same_weights = name == OURS or same_bottlenecks(network)
        for runtime in runtimes:
            attempts[runtime, name] = attempt(workload, runtime, expected if has_same_weights else None, tolerance)
    return {(name, runtime): attempts[runtime, name] for runtime in runtimes for name in networks}


def attempt(workload: Workload, runtime: str, expected: object | None, tolerance: float) -> Attempt:
    """Build a network in a runtime, and call it once.

    Raises:
        MMRepMLPError: The runtime computes in float32, and other outputs than expected.
    """
    try:
        call = torch.inference_mode()(RUNTIMES[runtime](workload))
        outputs = call()
    except Exception as error:  # of any kind: what is missing or fails in one runtime is no reason to measure none
        return Attempt(reason=describe(error))
    if expected is None:
        return Attempt(call)
    pairs = zip(named_tensors(outputs), named_tensors(expected), strict=True)
    error = max(distance(actual, wanted)[1] for (_, actual), (_, wanted) in pairs)
    if not is_reduced(runtime) and not error <= tolerance:
        raise MMRepMLPError(
            f"The outputs in {runtime} differ from those in eager mode ({error:.1e} relative, allowed {tolerance:.0e}):"
            " their times are not comparable. Leave that runtime out (--runtimes)."
        )
    return Attempt(call, error)


def describe(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = textwrap.shorten(lines[0] if lines else "no message", 200, placeholder=" ...")
    return text if isinstance(error, (ImportError, MMRepMLPError)) else f"{type(error).__name__}: {text}"


def measure(
    attempts: dict[tuple[str, str], Attempt], batch: int, repeats: int, title: str, hardware: Hardware
) -> list[RuntimeMeasurement]:
    """Time the calls interleaved with the reference products (first rows), then their memory."""
    products = {("sgemm", library): product for library, product in reference_matmuls(torch.float32, hardware).items()}
    calls = {key: attempt.call for key, attempt in attempts.items() if attempt.call}
    seconds = interleave({**calls, **products}, repeats, title, hardware)
    medians = {key: 1e3 * statistics.median(times) for key, times in seconds.items()}
    rows = [RuntimeMeasurement(*key, batch=None, milliseconds=medians[key]) for key in products]
    for (name, runtime), attempt in attempts.items():
        if attempt.reason:
            rows.append(RuntimeMeasurement(name, runtime, batch, reason=attempt.reason))
            continue
        median = medians[name, runtime]
        eager, theirs = medians.get((OURS, "eager")), medians.get((THEIRS, runtime))
        rows.append(
            RuntimeMeasurement(
                network=name,
                runtime=runtime,
                batch=batch,
                milliseconds=median,
                over_eager=eager and eager / median,
                over_mmpretrain=theirs and theirs / median,
                error=attempt.error,
                peak_mib=hardware.peak_memory(attempt.call),
            )
        )
    return rows
