# SPDX-License-Identifier: Apache-2.0
"""Convert a trained checkpoint to deploy form, and verify that it is the same model before writing it."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmrepmlp.checkpoint import atomic_write, check_overwrite, load_from_local, meta_of, save_hashed, unwrap
from mmrepmlp.compression import compress
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import TOLERANCE, convertible_modules, switch_to_deploy
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.explain import summarize
from mmrepmlp.verbs.model import build_fitting, build_model, count_macs, deploy_config
from mmrepmlp.verbs.reparameterize.compressed import (
    compare_compressed,
    compressed_channels,
    compressed_config,
    kept_by_hooks,
    original_model,
    time_calls,
)
from mmrepmlp.verbs.reparameterize.official import OfficialReport, official_state
from mmrepmlp.verbs.reparameterize.report import ConversionReport, name_of
from mmrepmlp.verbs.reparameterize.test_set import compare_on_test_set
from mmrepmlp.verbs.reparameterize.verification import Forms, Verification, changed_tensors
from mmrepmlp.version import __version__

TRAINING_STATE = ("optimizer", "param_schedulers", "message_hub")
HALF = (torch.float16, torch.bfloat16)
NAMES = ("mmrepmlp", "official")
# Largest allowed difference by precision of the file, computed in float32, relative to an output's largest value.
FILE_TOLERANCE = {torch.float32: TOLERANCE[torch.float32], torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ConversionError(MMRepMLPError):
    """Raised if a conversion is not exact, or there is nothing to convert; nothing was written."""


def reparameterize_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    overwrite: bool = False,
    check: bool = False,
    verify_on: str | None = None,
    tolerance: float | None = None,
    ema: bool = False,
    dtype: str | None = None,
    keep_training_state: bool = False,
    names: str = "mmrepmlp",
    cfg_options: dict | None = None,
    allow_unsafe: bool = False,
) -> ConversionReport | OfficialReport:
    """Convert a checkpoint to deploy form, verify it, and write it with a config that loads it and a report.

    The file is written under a temporary name and read back into the model of the new config. Each converted module is
    compared with its training form, on the inputs that it gets when the model runs on random images: converted in
    float64, where it has to be exact, and as stored in the file. All other weights have to be the same bit for bit. The
    file gets its final name only after that.

    Args:
        config: Config of the model in training form: a classifier, segmentor or detector with re-parameterizable parts,
            such as RepMLPNet or any other module with a method ``switch_to_deploy``.
        checkpoint: Its trained checkpoint.
        out: Base name of the files. ``deploy.pth`` writes ``deploy-0123abcd.pth``, with a hash in its name, the report
            ``deploy-0123abcd.json``, and the config ``deploy.py``, whose ``load_from`` names the checkpoint.
            ``.safetensors`` works as well.
        overwrite: Whether to replace the files of an earlier conversion to ``out``. Default: False.
        check: Whether to convert, verify and report, but write nothing. Default: False.
        verify_on: ``"test"`` to also evaluate both forms on the config's test set, whose images may reach modules that
            random images do not. Default: None.
        tolerance: Largest allowed difference of the written file, relative to an output's largest value. Default: 1e-5
            for a file in float32, 1e-2 in float16, 5e-2 in bfloat16.
        ema: Whether to convert the weights averaged during training (EMA). Default: False.
        dtype: Precision of the file, ``"float32"``, ``"float16"`` or ``"bfloat16"``; the conversion runs in float32.
            Default: the checkpoint's.
        keep_training_state: Whether to keep optimizer, schedulers and message hub. Default: False.
        names: ``"official"`` to only convert tensor names: the checkpoint of a classifier, in training form, becomes a
            plain state dict that the authors' code loads and converts. Default: ``"mmrepmlp"``.
        cfg_options: Config settings to override, by dotted name, such as those of the training. Default: None.
        allow_unsafe: Whether to run code that the checkpoint holds. Default: False.

    Returns:
        Report on the conversion.

    Raises:
        FileNotFoundError: The config or the checkpoint does not exist.
        FileExistsError: ``out`` has a conversion and ``overwrite`` is not set.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: The checkpoint does not fit the config's model, an argument has another value than its choices, or
            does not apply to ``names="official"``.
        ConversionError: The model has nothing to convert, or outputs or metrics differ or cannot be compared.
        MMRepMLPError: With ``names="official"``, the authors have no such network; with ``verify_on``, the test set
            yields no metric; or the compression of a model cannot be verified.
    """
    out = Path(out)
    for name, value, choices in (("names", names, NAMES), ("verify_on", verify_on, (None, "test"))):
        if value not in choices:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(str, choices))}.")
    if names == "official" and (verify_on or keep_training_state or tolerance is not None):
        raise ValueError("names='official' renames tensors: verify_on, tolerance and keep_training_state do not apply.")
    if not check:
        check_overwrite(out, out.with_suffix(".py"), overwrite=overwrite)
    cfg = read_config(config, cfg_options)
    source = load_from_local(checkpoint, allow_unsafe=allow_unsafe)
    state = unwrap(source, ema)
    precision = getattr(torch, dtype) if dtype else written_precision(state)
    if names == "official":
        network, _ = build_fitting(cfg, state)
        return write_official(checkpoint, out, cast(official_state(network), precision), overwrite, check)
    trained, fitting = build_fitting(cfg, state)
    if fitting is not cfg:
        raise ConversionError(f"{checkpoint} is already in deploy form: there is nothing to convert.")
    model, narrower = trained, cfg
    compressed = compress(copy.deepcopy(trained).double(), kept_by_hooks(source))
    if compressed is not None:
        model, narrower = copy.deepcopy(compressed.model).float(), compressed_config(cfg, compressed)
    converted, target = convert(config, model, narrower, compressed is not None)
    allowed = FILE_TOLERANCE[precision] if tolerance is None else tolerance
    forms = (original_model(trained), converted)
    report = ConversionReport(
        source=Path(checkpoint),
        parameters=tuple(sum(p.numel() for p in form.parameters()) for form in forms),
        macs=tuple(map(count_macs, forms)),
        megabytes=tuple(map(megabytes, forms, (written_precision(state), precision))),
        converted=list(convertible_modules(model)),
    )
    if compressed is not None:
        report.channels = compressed_channels(compressed)
        report.compression = compare_compressed(trained, compressed)
        raise_failures(report, {})
        report.milliseconds = time_calls(forms)

    def verify(file: Path) -> None:
        written = build_deploy_form(config, target, file)
        double = copy.deepcopy(model).double()
        verification = Verification(
            model,
            [
                Forms(double, switch_to_deploy(copy.deepcopy(double)), torch.float64, TOLERANCE[torch.float64]),
                Forms(model, written, precision, allowed),
            ],
        )
        report.changed = changed_tensors(model, written, verification.all_names(), precision)
        verification.run_on_random_images()
        report.differences = verification.differences
        if verify_on == "test" and not report.failures():
            agreement = compare_on_test_set(cfg, trained, written, verification)
            report.metrics, report.same_predictions = agreement.metrics, agreement.share
            report.rounding = agreement.rounding
            report.differences = verification.differences
        raise_failures(report, verification.unverified())

    kept = {key: source[key] for key in TRAINING_STATE if keep_training_state and key in source}
    meta = {**meta_of(source), "cfg": target.pretty_text, "mmrepmlp_version": __version__}
    content = {"meta": meta, "state_dict": cast(converted.state_dict(), precision), **kept}
    if check:
        with TemporaryDirectory() as folder:
            save_hashed(content, Path(folder, out.name), verify)
        return report
    return write_files(out, content, target, report, verify)


def convert(config: str | Path, model: nn.Module, cfg: Config, compressed: bool = False) -> tuple[nn.Module, Config]:
    """Convert a copy of a model, and derive the config that builds it.

    Raises:
        ConversionError: There is nothing to convert and the model is not ``compressed``, or the config cannot be
            written as text.
    """
    converted = switch_to_deploy(copy.deepcopy(model))
    if not compressed and converted.state_dict().keys() == model.state_dict().keys():
        if convertible_modules(model) or any(getattr(module, "deploy", False) for module in model.modules()):
            raise ConversionError(f"The model of {config} is already in deploy form.")
        raise ConversionError(f"The model of {config} has nothing to convert: no part of it has a deploy form.")
    return converted, read_back(config, deploy_config(cfg, model))


def read_back(config: str | Path, target: Config) -> Config:
    """Write a config and read it back.

    Raises:
        ConversionError: The config that was read back differs, or cannot be read.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "deploy.py")
        try:
            file.write_text(target.pretty_text, encoding="utf-8")
            if (written := Config.fromfile(file)).to_dict() == target.to_dict():
                return written
            reason = "it differs when read back"
        except Exception as error:  # a config file may raise anything
            reason = summarize(error)
    raise ConversionError(
        f"The deploy-form config of {config} cannot be written as text: {reason}. Use only names, numbers and lists "
        "in the config. Nothing was written."
    )


def build_deploy_form(config: str | Path, target: Config, file: Path) -> nn.Module:
    """Build the model of a deploy-form config with the weights of a file.

    Raises:
        ConversionError: The weights do not fit the model that the config builds.
    """
    try:
        return build_model(target, load_from_local(file)["state_dict"])
    except ValueError as error:
        raise ConversionError(
            f"The model of {config} has a part with a deploy form that a config cannot build: {error}"
        ) from error


def raise_failures(report: ConversionReport, unverified: dict[str, str]) -> None:
    """Raise an error if the two forms differ, or if converted modules could not be compared.

    Args:
        report: Report on the conversion.
        unverified: Names of the modules that could not be compared, with the reasons.
    """
    failures = report.failures()
    if failures:
        rest = f" and {len(failures) - 10} more" if len(failures) > 10 else ""
        rounding = name_of(report.differences[-1].dtype) if report.differences else ""
        advice = f" The conversion is exact except for rounding to {rounding}; --tolerance allows more of it."
        raise ConversionError(
            f"The deploy form differs: {'; '.join(failures[:10])}{rest}. Nothing was written."
            + (advice if report.exact and report.same_predictions is None else "")
        )
    if unverified:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in unverified.items())
        tested = report.same_predictions is not None
        images = "random images and the test set" if tested else "random images"
        advice = "" if tested else " --verify-on test compares it on the config's test set."
        raise ConversionError(
            f"A converted part of the model cannot be verified on {images} ({reasons}). Nothing was written.{advice}"
        )


def write_official(
    checkpoint: str | Path, out: Path, state: dict[str, Tensor], overwrite: bool, check: bool
) -> OfficialReport:
    """Write a state dict with the authors' names, as a plain state dict or as a safetensors file."""
    report = OfficialReport(Path(checkpoint), len(state), sum(value.numel() for value in state.values()))
    if not check:
        stale = earlier_files(out)
        check_overwrite(*stale, overwrite=overwrite)
        report.checkpoint = save_hashed({"state_dict": state} if out.suffix == ".safetensors" else state, out)
        for path in {out, *stale} - {report.checkpoint}:
            path.unlink(missing_ok=True)
    return report


def written_precision(state: dict[str, Tensor]) -> torch.dtype:
    """Return the dtype of a half-precision state dict, float32 for any other."""
    precisions = {value.dtype for value in state.values() if value.is_floating_point()}
    return precisions.pop() if len(precisions) == 1 and precisions < set(HALF) else torch.float32


def megabytes(model: nn.Module, dtype: torch.dtype) -> float:
    """Return the size of a model's weights in a precision, in units of 1e6 bytes."""
    return sum(value.nbytes for value in cast(model.state_dict(), dtype).values()) / 1e6


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast the floating point tensors of a state dict, and keep its metadata."""
    state = copy.copy(state)
    state.update({name: value.to(dtype) for name, value in state.items() if value.is_floating_point()})
    return state


def write_files(
    out: Path, content: dict, target: Config, report: ConversionReport, verify: Callable[[Path], None]
) -> ConversionReport:
    """Write checkpoint, report and config.

    The config is written last, since it names the checkpoint: files of an earlier conversion stay valid until then.
    """
    report.config, stale = out.with_suffix(".py"), earlier_files(out)
    report.checkpoint = save_hashed(content, out, verify)
    report_file = report.checkpoint.with_suffix(".json")
    try:
        with atomic_write(report_file, named_after=out.with_suffix(report_file.suffix)) as file:
            file.write_text(report.to_json(), encoding="utf-8")
        target.load_from = report.checkpoint.name  # read_config also looks beside the config
        with atomic_write(report.config) as file:
            file.write_text(target.pretty_text, encoding="utf-8")
    except OSError:
        for path in {report.checkpoint, report_file} - stale:
            path.unlink(missing_ok=True)
        raise
    for path in {out, *stale} - {report.checkpoint, report_file}:
        path.unlink(missing_ok=True)
    return report


def earlier_files(out: Path) -> set[Path]:
    """Find the checkpoints and reports of earlier conversions of the same name."""
    name = re.compile(re.escape(out.stem) + rf"-[0-9a-f]{{8}}({re.escape(out.suffix)}|\.json)")
    return {path for path in out.parent.glob("*") if name.fullmatch(path.name)}
