# SPDX-License-Identifier: Apache-2.0
"""Whether neck and heads fit the maps of one of this package's backbones, found out by trying."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from mmrepmlp.models.backbone import StagedBackbone
from mmrepmlp.verbs.config import as_list, resolve_type

from .probe import Probe, is_known, run_probe

SWITCH = "check_model=False in the config skips this check."


class FitError(ValueError):
    """A neck or head does not fit the backbone.

    Args:
        message: What does not fit, and what to set.
        options: The settings to change, by dotted names, where they are known.
    """

    def __init__(self, message: str, options: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.options = options or {}


def check_fit(cfg: Config, training: bool = True) -> None:
    """Run one image through a model with a backbone of this package, and explain which channels do not fit.

    Refused is only what is certain to fail: the model itself raised an error, in a layer that got another number of
    channels than it was built for, or in a neck or head that reads a map that there is not, and does so again with a
    larger image, if the backbone takes one. Any other error may be due to the trial, and passes.

    Args:
        cfg: A config of mmpretrain, mmsegmentation or mmdetection.
        training: Whether auxiliary heads count, which take no part in predictions. Default: True.

    Raises:
        FitError: A neck or head does not fit; the message says what to set.
    """
    try:
        errors = ((name, find_error(part, training)) for name, part in iter_models(cfg))
        name, error = next(((name, error) for name, error in errors if error), ("model", None))
    except Exception:  # what does not work is the run's own to raise
        return
    if error:
        options = {key.replace("model", name, 1): value for key, value in error.options.items()}
        raise FitError(str(error).replace("model.", f"{name}."), options)


def iter_models(cfg: Config) -> Iterator[tuple[str, Config]]:
    """The model of a config, and models that it wraps, each with its name and a config of its own.

    Wrapped ones are the detectors of mmdetection's trackers and semi-supervised models; what a wrapper of somebody else
    does with a model is not known.
    """
    yield "model", cfg
    scope = cfg.get("default_scope", "mmengine")
    with DefaultScope.overwrite_default_scope(scope):
        known = is_known(resolve_type(cfg.model, MODELS))
    for key, part in cfg.model.items() if known else ():
        if isinstance(part, Mapping) and "backbone" in part:
            yield f"model.{key}", Config(dict(model=part, default_scope=scope))


def find_error(cfg: Config, training: bool) -> FitError | None:
    """What is certain not to fit in a config; None if nothing is known.

    Raises:
        Exception: Of the framework, if the model cannot be built.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        kind = resolve_type(cfg.model.get("backbone"), MODELS)
    if not (isinstance(kind, type) and issubclass(kind, StagedBackbone)):
        return None
    probe = run_probe(cfg)
    misfit = probe.misfit
    if misfit is None or (misfit.part.startswith("auxiliary_head") and not training):
        return None
    larger = run_probe(cfg, scale=2)
    if isinstance(larger.error, ValueError) and "backbone" not in larger.passed:
        return advise(cfg, probe)  # images have one size, that of the trial
    again = larger.misfit
    # Behind a flattened map, a number depends on the size of the images, which the trial does not know.
    if again is None or (again != misfit and (again.part, again.unit) != (misfit.part, "width")):
        return None
    if again == misfit and misfit.unit == "width":  # the channels come last
        probe.misfit = replace(misfit, unit="channels")
    return advise(cfg, probe)


def advise(cfg: Config, probe: Probe) -> FitError:
    """Explain what does not fit, and what to set if that is known."""
    misfit, channels = probe.misfit, channels_of(probe.outputs.get("backbone"))
    if misfit.unit == "index":
        return FitError(
            f"model.{misfit.part} takes map {misfit.expected}, counted from 0, but there are only {misfit.given}. Set "
            f"model.{misfit.part}.in_index to less, or model.backbone.out_indices to more, e.g. (0, 1, 2, 3). {SWITCH}"
        )
    if misfit.unit == "maps":
        wanted = list(probe.model.get_submodule(misfit.part).in_channels)
        return FitError(
            f"model.{misfit.part}.in_channels={wanted} takes {len(wanted)} maps, but the backbone gives "
            f"{misfit.given}, with {channels} channels. Set model.backbone.out_indices, e.g. to (0, 1, 2, 3), and "
            f"model.{misfit.part}.in_channels to the channels of its maps, {channels} as it is. {SWITCH}"
        )
    gets = "maps instead of vectors" if misfit.unit == "width" else misfit.given
    unit = "axes" if misfit.unit == "axes" else "channels"
    where = (
        f"the backbone, whose maps have {channels} channels: {misfit.part} was built for {misfit.expected} {unit} and "
        f"gets {gets}"
    )
    try:
        options, given = find_settings(cfg, probe)
    except Exception:  # no such settings, or a config of a kind that is not understood
        part = misfit.part.rpartition(".")[0] or misfit.part
        advice = "Change its input channels, or what it gets, by model.neck or model.backbone.out_indices."
        return FitError(f"model.{part} does not fit {where}. {advice} {SWITCH}")
    settings = " and ".join(f"{name}={value}" for name, value in options.items())
    return FitError(f"{next(iter(options))}={given} does not fit {where}. Set {settings}. {SWITCH}", options)


def find_settings(cfg: Config, probe: Probe) -> tuple[dict[str, object], object]:
    """The first of the likely settings with which the layer fits, as a further trial shows, and its present value.

    Raises:
        LookupError: With none of them.
    """
    for options, given in iter_settings(cfg.model, probe):
        changed = copy.deepcopy(cfg)
        with suppress(Exception):  # of a model that cannot be built so
            changed.merge_from_dict(copy.deepcopy(options))
            owner, _, key = next(iter(options)).removeprefix("model.").rpartition(".")
            # Of a setting that is not known to be of channels, all of the part that has it must agree.
            part = probe.misfit.part if "channels" in key else owner
            # With a neck, the layer gets the channels instead of a side of the map: another number, to set next.
            if "model.neck" in options or fits(part, run_probe(changed)):
                return options, given
    raise LookupError(probe.misfit.part)


def fits(part: str, probe: Probe) -> bool:
    """Whether a part gave an output in a trial each time that it was called."""
    return part in probe.passed and not (probe.misfit and probe.misfit.part == part)


def iter_settings(settings: ConfigDict, probe: Probe) -> Iterator[tuple[dict[str, object], object]]:
    """Settings that could make a layer fit, the likely ones first, each with the value that the first of them has now.

    Of channels these are the ``in_channels`` of the parts around the layer, the outermost first, then their other
    numbers.
    """
    misfit, path = probe.misfit, probe.misfit.part.split(".")
    if misfit.unit == "width":
        if path[0] == "head":
            yield (
                {"model.neck": [*as_list(settings.get("neck")), dict(type="GlobalAveragePooling")]},
                settings.get("neck"),
            )
        return
    if misfit.unit == "axes":  # which the layer around it was told
        owner = ".".join(path[:-1])
        yield {f"model.{owner}.dim": misfit.given - 2}, find_part(settings, owner).get("dim")
        return
    maps = probe.outputs.get("backbone")
    inputs = channels_of(maps if path[0] == "neck" else probe.outputs.get("neck", maps))
    others = []
    for name in [".".join(path[: i + 1]) for i in range(len(path) - 1)]:
        part, module = find_part(settings, name), probe.model.get_submodule(name)
        setting, given = f"model.{name}.in_channels", part.get("in_channels", getattr(module, "in_channels", None))
        indices = part.get("in_index", getattr(module, "in_index", None))
        if isinstance(given, (list, tuple)):
            read = indices if isinstance(indices, (list, tuple)) else range(len(inputs))
            right = type(given)(inputs[i] for i in read)
            yield {setting: right}, given
            if part.get("channels") == sum(given):  # concatenated, and no convolutions
                others.append(({setting: right, f"model.{name}.channels": sum(right)}, given))
            others.append(({setting: type(given)(inputs[i] for i in reversed(read))}, given))  # from the last map on
        elif given:  # a layer may see each channel several times, as one behind a flattened map does
            right = given * misfit.given // misfit.expected
            yield {setting: right}, given
            if part.get("channels") == given:  # a head without convolutions
                others.append(({setting: right, f"model.{name}.channels": right}, given))
        for key, value in sorted(part.items(), key=lambda item: "channels" not in item[0]):
            if isinstance(value, int) and value == misfit.expected and key != "in_channels":
                others.append(({f"model.{name}.{key}": misfit.given}, value))
    yield from others


def find_part(settings: ConfigDict, name: str) -> Mapping:
    """The config of a part by its name in the model; empty if the config has none of this name."""
    part: object = settings
    for key in name.split("."):
        if isinstance(part, Mapping):
            part = part.get(key)
        else:
            part = part[int(key)] if isinstance(part, list) and key.isdigit() and int(key) < len(part) else None
    return part if isinstance(part, Mapping) else {}


def channels_of(maps: object) -> list[int]:
    """Numbers of channels of maps or vectors."""
    maps = maps if isinstance(maps, (list, tuple)) else [maps]
    return [x.size(1) for x in maps if isinstance(x, Tensor)]
