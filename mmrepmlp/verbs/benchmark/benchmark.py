# SPDX-License-Identifier: Apache-2.0
"""Benchmark the forms of RepMLPNet, a config's model in several runtimes, or deployed folders."""

import statistics
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet, image_channels
from mmrepmlp.reparam import distance, named_tensors
from mmrepmlp.verbs.explain_data import first_line
from mmrepmlp.verbs.model import count_macs

from .hardware import Hardware
from .measure import SGEMM_SIDE, interleave, reference_matmuls
from .networks import OURS, SINGLE_LAYER, THEIRS, build_networks, build_whole, convert, has_same_weights
from .report import BenchmarkReport
from .runtimes import FORMS, RUNTIMES, STEP, TASKS, Call, Workload, is_reduced

ROUNDED_TOLERANCE = 0.1  # relative, for precisions below float32


@dataclass
class Attempt:
    """Network prepared for a task: the function to call and the error of its outputs, or the reason for not running."""

    call: Call | None = None
    error: float | None = None
    reason: str | None = None


def benchmark(
    targets: Sequence[str | Path] = (),
    against: str | None = None,
    runtimes: Sequence[str] | None = None,
    arch: str | dict | None = None,
    img_size: int | None = None,
    size: tuple[int, int] | None = None,
    batches: Sequence[int] | None = None,
    dtype: str | None = None,
    autocast: str | None = None,
    training_step: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    tf32: bool = False,
    channels_last: bool = False,
    repeats: int = 15,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
) -> BenchmarkReport:
    """Measure speed in interleaved calls in one process.

    Without targets, measure RepMLPNet in training form and deploy form, or in training steps, or its deploy form in
    several runtimes. For a config, measure its whole model with random weights, up to the raw outputs, in several
    runtimes. For folders that :func:`deploy_checkpoint` wrote, measure accuracy, size and latency.

    Args:
        targets: Path of a config, or ``package::path``; or deployed folders; or both, to evaluate the folders on the
            config's test set. Default: (), RepMLPNet.
        against: ``"mmpretrain"`` to also measure mmpretrain's RepMLPNet, with the same weights if the architecture
            allows it. Default: None.
        runtimes: Names from :data:`~mmrepmlp.verbs.benchmark.runtimes.RUNTIMES`. Default: None, all for a config,
            otherwise the two forms in eager mode.
        arch: Letter of the architecture, or its settings as a dict. Default: B.
        img_size: Height and width of the images in pixels, which one tile covers. Default: 224.
        size: Height and width of the images in pixels, for a config or for deployed graphs that take any size. Default:
            the size that the config's test pipeline resizes or crops to, or else that the backbone was built for.
        batches: Batch sizes. Default: (1, 8); (1,) for a config.
        dtype: Precision of the weights: float32, float64, bfloat16 or float16. Default: float32.
        autocast: Precision of torch's autocast, ``bfloat16`` or ``float16``. Default: None, without autocast.
        training_step: Whether to measure whole training steps (forward, backward, AdamW) instead of forward passes;
            adds networks that have the structure of the deploy form in training. Default: False.
        device: Device for PyTorch: ``cpu``, or a GPU such as ``cuda:1``. Default: cpu.
        threads: Number of threads. Default: torch's choice.
        tf32: Whether to allow TF32 in float32 matrix products, on a GPU. Default: False.
        channels_last: Whether to use the channels-last memory format. Default: False.
        repeats: Number of timed calls of each network in each task. Default: 15.
        work_dir: Folder for logs of an evaluation. Default: the config's, or ``work_dirs/<config name>``.
        cfg_options: Config settings to override, by dotted name. Default: None.

    Returns:
        Medians and other measurements. If a runtime is not installed or cannot run a network, its row has the reason.

    Raises:
        ValueError: An argument is out of range, or has no effect on these targets.
        FileNotFoundError: A config or a folder does not exist.
        ExplainedError: A dataset is missing.
        ImportError: mmpretrain is not installed, or for a config, the packages for export.
        MMRepMLPError: The device does not exist, the model does not run on images of this size, or the outputs of a
            network differ from those of its training form.
        DeploymentError: The files of a folder were changed, or it does not fit the config's model.
    """
    folders = [target for target in targets if Path(target).is_dir()]
    config, *others = [target for target in targets if target not in folders] or [None]
    if others:
        raise ValueError(f"targets={', '.join(map(str, targets))}: expected one config, deployed folders, or both.")
    unknown = sorted(set(runtimes or ()) - set(RUNTIMES))
    if unknown:
        raise ValueError(f"runtimes={', '.join(unknown)}: expected some of {', '.join(RUNTIMES)}.")
    hardware = Hardware(device, threads, tf32, channels_last, autocast)
    if config is None:
        reject_unused("without a config", work_dir=work_dir, cfg_options=cfg_options, size=None if folders else size)
    if config or folders:
        reject_unused("on a config or folders", against=against, arch=arch, img_size=img_size)
    if config or folders or runtimes:
        reject_unused("on runtimes", dtype=dtype, autocast=autocast, training_step=training_step)
    if folders:
        from .deployments import benchmark_deployments

        gpu = None if device == "cpu" else device
        reject_unused(
            "on folders", runtimes=runtimes, batches=batches, device=gpu, tf32=tf32, channels_last=channels_last
        )
        return benchmark_deployments(folders, config, size, repeats, hardware, work_dir, cfg_options)
    hardware.prepare()
    precision = getattr(torch, dtype or "float32")
    if config:
        models, size = build_whole(config, size, cfg_options)
        settings = dict(config=str(config), size=f"{size[0]}x{size[1]}")
    else:
        arch, img_size = arch or "B", img_size or 224
        models, size = build_networks(arch, img_size, against, precision), (img_size, img_size)
        settings = dict(arch=f"RepMLPNet-{arch}{img_size}")
    if config or runtimes:
        tasks, settings["form"] = list(runtimes or RUNTIMES), "deploy form"
    else:
        tasks, settings["dtype"] = [STEP] if training_step else list(FORMS), dtype or "float32"
    if training_step:
        models |= {name: RepMLPNet(arch, img_size, **more).to(precision) for name, more in SINGLE_LAYER.items()}
    networks = {name: hardware.place(model) for name, model in models.items()}
    rows = []
    for batch in batches or ((1,) if config else (1, 8)):
        images = hardware.place(torch.randn(batch, image_channels(networks[OURS]), *size, dtype=precision))
        title = f"{next(iter(settings.values()))}, batch {batch}"
        with tempfile.TemporaryDirectory() as folder:
            attempts = attempt_all(networks, tasks, images, Path(folder), hardware)
            gflop = 2e-9 * count_macs(convert(networks[OURS]), images) if tasks == list(FORMS) else None
            rows += measure(attempts, batch, gflop, repeats, precision, title, hardware)
    return BenchmarkReport({**settings, "repeats": repeats, **hardware.environment()}, rows)


def reject_unused(condition: str, **settings: object) -> None:
    """Raise an error if any of the settings, which have no effect under a condition, is set."""
    unused = [f"{name}={value!r}" for name, value in settings.items() if value]
    if unused:
        raise ValueError(f"{', '.join(unused)}: without effect {condition}. Leave it out.")


def attempt_all(
    networks: dict[str, nn.Module], tasks: Sequence[str], images: Tensor, folder: Path, hardware: Hardware
) -> dict[tuple[str, str], Attempt]:
    """Prepare each network for each task, and compare its outputs with those of the training form in eager mode.

    The training form is mmpretrain's if it has the same weights, else ours.

    Raises:
        MMRepMLPError: The model does not run on the images, or our outputs differ.
    """
    same = [name for name, network in networks.items() if name == OURS or has_same_weights(network)]
    expected = None
    if STEP not in tasks:
        try:
            with torch.inference_mode():
                expected = [tensor for _, tensor in named_tensors(networks[same[0]](images))]
        except Exception as error:
            raise MMRepMLPError(
                f"The model does not run on images of shape {tuple(images.shape)} alone ({describe(error)}). Pass "
                "another --size, or the config of a classifier, segmentor or one-stage detector."
            ) from error
    torch.compiler.reset()  # dynamo caches eight networks of a class, and runs further ones in eager mode
    workloads = {}
    for name, network in networks.items():
        (folder / name).mkdir()
        deployed = network if STEP in tasks else convert(network)
        workloads[name] = Workload(network, deployed, images, folder / name, hardware)
    attempts = {}
    for task in tasks:
        for name, workload in workloads.items():
            attempts[name, task] = attempt(workload, task, expected if name in same else None)
        check_error(task, attempts[OURS, task].error, images.dtype, hardware)
    return attempts


def attempt(workload: Workload, task: str, expected: Sequence[Tensor] | None) -> Attempt:
    """Prepare a network for a task, call it once, and compare its outputs."""
    inference = torch.inference_mode(task != STEP)
    try:
        with inference:
            call = inference(TASKS[task](workload))
            outputs = call()
    except Exception as error:  # of any kind: other runtimes can still be measured
        return Attempt(reason=describe(error))
    if expected is None:
        return Attempt(call)
    pairs = zip(named_tensors(outputs), expected, strict=True)
    return Attempt(call, max(distance(actual, wanted)[1] for (_, actual), wanted in pairs))


def check_error(task: str, error: float | None, dtype: torch.dtype, hardware: Hardware) -> None:
    """Check that our network has the same outputs in a task as in training form, unless the task reduces precision."""
    exact = {torch.float64: 1e-10, torch.float32: 1e-5 if task in FORMS else 1e-4}.get(dtype)
    allowed = ROUNDED_TOLERANCE if hardware.tf32 or hardware.autocast else exact or ROUNDED_TOLERANCE
    if error is not None and not is_reduced(task) and not error <= allowed:
        raise MMRepMLPError(
            f"The outputs in {task} differ from those of the training form ({error:.1e} relative, allowed "
            f"{allowed:.0e}), so that times are not comparable. Leave that runtime out (--runtimes)."
        )


def describe(error: Exception) -> str:
    """Shorten an error to one line."""
    text = str(error) if isinstance(error, (ImportError, MMRepMLPError)) else first_line(error)
    return textwrap.shorten(text, 200, placeholder=" ...")


def measure(
    attempts: dict[tuple[str, str], Attempt],
    batch: int,
    gflop: float | None,
    repeats: int,
    dtype: torch.dtype,
    title: str,
    hardware: Hardware,
) -> list[dict[str, object]]:
    """Time the calls, interleaved with reference matrix products (the first rows), then measure their memory."""
    products = {("sgemm", library): product for library, product in reference_matmuls(dtype, hardware).items()}
    calls = {key: attempt.call for key, attempt in attempts.items() if attempt.call}
    seconds = interleave({**calls, **products}, repeats, title, hardware)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    rates = {key: 2 * SGEMM_SIDE**3 / 1e9 / medians[key] for key in products}
    reference = max(rates.values())
    rates |= {key: gflop / medians[key] for key in calls if gflop}
    rows = []
    for key in (*products, *attempts):
        median, attempt = medians.get(key), attempts.get(key, Attempt())
        speed_over = {
            column: medians[other] / median if median and other in medians and key not in products else None
            for column, other in (("over_eager", (OURS, "eager")), ("speedup", (THEIRS, key[1])))
        }
        rows.append(
            dict(
                model=key[0],
                task=key[1],
                batch=None if key in products else batch,
                milliseconds=median and 1e3 * median,
                **speed_over,
                gflops=rates.get(key),
                sgemm_share=rates[key] / reference if key in rates else None,
                error=attempt.error,
                peak_mib=hardware.peak_memory(attempt.call) if attempt.call else None,
                reason=attempt.reason,
            )
        )
    return rows
