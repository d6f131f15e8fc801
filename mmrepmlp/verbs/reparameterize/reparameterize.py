# SPDX-License-Identifier: Apache-2.0
"""From a trained checkpoint to one in deploy form that proves to be the same model."""

import copy
import re
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import mmengine
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmrepmlp.checkpoint import (
    atomic_write,
    check_overwrite,
    load_from_local,
    meta_of,
    save_checkpoint,
    save_hashed,
    unwrap,
)
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import TOLERANCE, named_tensors, switch_to_deploy
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.forward import count_macs
from mmrepmlp.verbs.model import build_model, deploy_config
from mmrepmlp.verbs.reparameterize.report import ConversionReport, name_of
from mmrepmlp.verbs.reparameterize.verification import compare_models, find_uncompared, is_converted, verify_in_float64
from mmrepmlp.verbs.test.evaluate import evaluate
from mmrepmlp.version import __version__

TRAINING_STATE = ("optimizer", "param_schedulers", "message_hub")
HALF = (torch.float16, torch.bfloat16)
SAME_PREDICTIONS = 0.999  # share that is demanded where nothing else proves a conversion
# Of the written file, computed in float32, relative to an output's largest value.
FILE_TOLERANCE = {torch.float32: TOLERANCE[torch.float32], torch.float16: 1e-2, torch.bfloat16: 5e-2}


class ConversionError(MMRepMLPError):
    """A conversion did not prove exact, or there was nothing to convert; nothing was written."""


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
    allow_unsafe: bool = False,
) -> ConversionReport:
    """Convert a checkpoint to deploy form and write it beside a config that loads it and a report.

    The conversion is repeated in float64, where it has to be exact. Then the file is written under a temporary name,
    read back into the model of the new config, and that is compared with the original on random images, and on request
    on the config's test set, before the file gets its name.

    Args:
        config: Config of the model in training form: a classifier, segmentor or detector with re-parameterizable parts,
            RepMLPNet or any other module that owns a ``switch_to_deploy``.
        checkpoint: Its trained checkpoint.
        out: What to name the files after. ``deploy.pth`` gives ``deploy-0123abcd.pth``, which ends in its hash, its
            report ``deploy-0123abcd.json``, and ``deploy.py``, the config, whose ``load_from`` names the checkpoint.
            ``.safetensors`` works as well.
        overwrite: Whether files of an earlier conversion to ``out`` may be replaced. Default: False.
        check: Whether to report alone and write nothing. Default: False.
        verify_on: ``"test"`` to evaluate both forms on the config's test set. Default: None.
        tolerance: Largest allowed difference of the written file, relative to an output's largest value. Default: 1e-5
            for a file in float32, 1e-2 in float16, 5e-2 in bfloat16.
        ema: Whether to convert the weights averaged over the training. Default: False.
        dtype: Precision to write, ``"float32"``, ``"float16"`` or ``"bfloat16"``; the conversion itself is done in
            float32. Default: the checkpoint's.
        keep_training_state: Whether to keep what resuming needs: optimizer, schedulers, message hub. Default: False.
        allow_unsafe: Whether to run code that the checkpoint holds. Default: False.

    Returns:
        What was done.

    Raises:
        FileExistsError: There is a conversion of this name and ``overwrite`` is not set.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: The checkpoint does not belong to the config's model.
        ConversionError: The model has nothing to convert, or outputs or metrics differ.
    """
    out = Path(out)
    if not check:
        check_overwrite(out, out.with_suffix(".py"), overwrite=overwrite)
    cfg = read_config(config)
    source = load_from_local(checkpoint, allow_unsafe=allow_unsafe)
    state = unwrap(source, ema)
    model = build_training_form(checkpoint, cfg, state)
    converted, target = convert(config, model, cfg)
    precision = getattr(torch, dtype) if dtype else written_precision(state)
    uncompared = find_uncompared(model)
    allowed = FILE_TOLERANCE[precision] if tolerance is None else tolerance
    report = ConversionReport(
        source=Path(checkpoint),
        parameters=tuple(sum(p.numel() for p in m.parameters()) for m in (model, converted)),
        macs=(count_macs(model), count_macs(converted)),
        differences=verify_in_float64(model, switch_to_deploy),
        uncompared=uncompared,
        unproven=[name for name in uncompared if is_converted(model, name)],
    )

    def prove(file: Path, _: Path) -> None:
        written = build_deploy_form(config, target, file)
        report.differences += compare_models(model, written, precision, allowed)
        if verify_on == "test" and not report.failures():
            report.metrics, report.same_predictions = evaluate_forms(
                (cfg, target), (model, written), compare=bool(report.unproven)
            )
        raise_failures(report)

    kept = {key: source[key] for key in TRAINING_STATE if keep_training_state and key in source}
    meta = {**meta_of(source), "cfg": target.pretty_text, "mmrepmlp_version": __version__}
    content = {"meta": meta, "state_dict": cast(converted.state_dict(), precision), **kept}
    if check:
        with TemporaryDirectory() as folder:
            save_hashed(content, Path(folder, out.name), prove)
        return report
    return write_files(out, content, target, report, prove)


def build_training_form(checkpoint: str | Path, cfg: Config, state: dict[str, Tensor]) -> nn.Module:
    """Build a config's model with the weights of a state dict.

    Raises:
        ConversionError: The state dict is of the model's deploy form.
        ValueError: It is not the model's.
    """
    try:
        return build_model(cfg, state)
    except ValueError as error:
        with suppress(ValueError):
            build_model(deploy_config(cfg), state)
            raise ConversionError(f"{checkpoint} is in deploy form already: there is nothing to convert.") from error
        raise


def convert(config: str | Path, model: nn.Module, cfg: Config) -> tuple[nn.Module, Config]:
    """Convert a copy of a model, and find the config that builds it and loads its weights.

    Raises:
        ConversionError: There is nothing to convert.
    """
    if not any(hasattr(module, "switch_to_deploy") for module in model.modules()):
        raise ConversionError(f"The model of {config} has nothing to convert: no part of it has a deploy form.")
    converted = switch_to_deploy(copy.deepcopy(model))
    if converted.state_dict().keys() == model.state_dict().keys():
        raise ConversionError(f"The model of {config} is in deploy form already.")
    return converted, deploy_config(cfg)


def build_deploy_form(config: str | Path, target: Config, file: Path) -> nn.Module:
    """Build the model of a deploy form's config from a file that was written for it.

    Raises:
        ConversionError: The config builds another model.
    """
    try:
        return build_model(target, load_from_local(file)["state_dict"])
    except ValueError as error:
        raise ConversionError(
            f"The model of {config} has a part whose deploy form cannot be built from a config: {error}"
        ) from error


def raise_failures(report: ConversionReport) -> None:
    """Refuse to go on where the two forms are not the same model, or nothing shows that they are."""
    if (report.unproven or not report.differences) and report.same_predictions is None:
        reasons = "; ".join(f"{name}: {report.uncompared[name]}" for name in report.unproven or report.uncompared)
        raise ConversionError(
            f"Random images show nothing about a part that is converted ({reasons}). Nothing was written. "
            "--verify-on test compares predictions on the config's test set instead."
        )
    if report.unproven and report.same_predictions < SAME_PREDICTIONS:
        raise ConversionError(
            f"The deploy form differs: {report.same_predictions:.2%} of the predicted numbers are the same. Nothing "
            "was written."
        )
    failures = report.failures()
    if not failures:
        return
    rest = f" and {len(failures) - 10} more" if len(failures) > 10 else ""
    rounding = name_of(report.differences[-1].dtype)
    advice = f" The conversion is exact but for {rounding}'s rounding; --tolerance allows more of it."
    raise ConversionError(
        f"The deploy form differs: {'; '.join(failures[:10])}{rest}. Nothing was written."
        + (advice if report.exact and not report.metrics else "")
    )


def evaluate_forms(
    configs: tuple[Config, Config], models: tuple[nn.Module, nn.Module], compare: bool = False
) -> tuple[dict[str, tuple[float, float]], float | None]:
    """Evaluate both forms of a model on the test set, each from a config and a checkpoint of its own.

    Returns:
        The metrics that are numbers; with ``compare`` the share of the same numbers in both predictions, else None.
    """
    results, predictions = [], []
    with TemporaryDirectory() as folder:
        for name, cfg, model in zip(("training", "deploy"), configs, models):
            paths = [str(Path(folder, name + ending)) for ending in (".py", ".pth")]
            cfg = copy.deepcopy(cfg)
            cfg.randomness = {"seed": 0, **(cfg.get("randomness") or {})}  # the same for random parts of both
            cfg.dump(paths[0])
            save_checkpoint({"state_dict": model.state_dict()}, paths[1])
            out = str(Path(folder, f"{name}.pkl")) if compare else None
            results.append(evaluate(*paths, work_dir=folder, out=out, progress=True))
            predictions += [mmengine.load(out)] if compare else []
    before, after = results
    numbers = [name for name, value in before.items() if isinstance(value, Real)]
    metrics = {name: (float(before[name]), float(after.get(name, "nan"))) for name in numbers}
    return metrics, share_of_same(*predictions) if compare else None


def share_of_same(before: object, after: object) -> float:
    """Share of the numbers in predictions that are the same in others, up to rounding; 0 if there are none."""
    actual, same, total = dict(named_tensors(after)), 0, 0
    for name, expected in named_tensors(before):
        if ".gt_" in name:
            continue
        total += expected.numel()
        if name in actual and actual[name].shape == expected.shape:
            same += torch.isclose(actual[name].double(), expected.double(), rtol=1e-3, atol=1e-6).sum().item()
    return same / max(total, 1)


def written_precision(state: dict[str, Tensor]) -> torch.dtype:
    """The precision of a half-precision checkpoint, float32 for any other."""
    precisions = {value.dtype for value in state.values() if value.is_floating_point()}
    return precisions.pop() if len(precisions) == 1 and precisions < set(HALF) else torch.float32


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast the floating point tensors of a state dict."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def write_files(
    out: Path, content: dict, target: Config, report: ConversionReport, prove: Callable[[Path, Path], None]
) -> ConversionReport:
    """Write checkpoint, report and config.

    The config comes last and names the checkpoint: until it is there, whatever it named before is untouched.
    """
    report.config, stale = out.with_suffix(".py"), earlier_files(out)
    report.checkpoint = save_hashed(content, out, prove)
    report_file = report.checkpoint.with_suffix(".json")
    try:
        with atomic_write(report_file, named_after=out.with_suffix(report_file.suffix)) as file:
            file.write_text(report.to_json())
        target.load_from = f"{{{{ fileDirname }}}}/{report.checkpoint.name}"
        with atomic_write(report.config) as file:
            file.write_text(target.pretty_text)
    except OSError:
        for path in {report.checkpoint, report_file} - stale:
            path.unlink(missing_ok=True)
        raise
    for path in {out, *stale} - {report.checkpoint, report_file}:
        path.unlink(missing_ok=True)
    return report


def earlier_files(out: Path) -> set[Path]:
    """Checkpoints and reports of earlier conversions of the same name."""
    name = re.compile(re.escape(out.stem) + rf"-[0-9a-f]{{8}}({re.escape(out.suffix)}|\.json)")
    return {path for path in out.parent.glob("*") if name.fullmatch(path.name)}
