# SPDX-License-Identifier: Apache-2.0
"""Whether neck and heads fit the maps of a RepMLPNet, found out by trying."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from traceback import walk_tb

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmrepmlp.apis.config import as_list, resolve_type
from mmrepmlp.apis.forward import PARTS, call_whole, keep_output, make_samples, random_images
from mmrepmlp.apis.model import build_untrained
from mmrepmlp.models import RepMLPNet

SWITCH = "check_model=False in the config skips this check."
# Packages whose models call their parts as known here; of others, only predictions are known to be what a run needs.
PACKAGES = ("mmpretrain", "mmseg", "mmdet", "mmcv", "mmengine", "mmrepmlp", "torch")
# How layers name the number of channels that they are built for, and the axis of their input that has them.
CHANNELS = {"in_channels": 1, "num_features": 1, "num_channels": 1, "in_features": -1, "normalized_shape": -1}


class FitError(ValueError):
    """A neck or head does not fit the backbone.

    Args:
        message: What does not fit, and what to set.
        options: The settings to change, by dotted names, where they are known.
    """

    def __init__(self, message: str, options: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.options = options or {}


@dataclass(frozen=True)
class Misfit:
    """A part of a model that raised an error, and was built for something else than it got.

    Attributes:
        part: Its name in the model.
        unit: What numbers differ: ``channels``, ``maps``, or ``index`` of a map.
        expected: Number that it was built for; None where that is no single number.
        given: Number that it got. None for a fully connected layer that got a map (N, C, H, W) instead of vectors.
    """

    part: str
    unit: str
    expected: int
    given: int | None


@dataclass
class Probe:
    """One image through a model, as far as it went.

    Attributes:
        model: The model.
        outputs: What ``backbone`` and ``neck`` gave, by these names.
        misfit: What ended the trial; None where nothing did, or an error of another kind.
        passed: Names of the parts that gave an output.
    """

    model: nn.Module
    outputs: dict[str, object] = field(default_factory=dict)
    misfit: Misfit | None = None
    passed: set[str] = field(default_factory=set)


def check_fit(cfg: Config, training: bool = True) -> None:
    """Run one image through a model with a RepMLPNet backbone, and explain which channels do not fit.

    Refused is only what is certain to fail: the model itself raised an error, in a layer that got another number of
    channels than it was built for, or in a neck or head that reads a map that there is not, and does so again with a
    larger image. Any other error may be due to the trial, and passes.

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


def is_known(kind: object) -> bool:
    """Whether a class is one of :data:`PACKAGES`."""
    return getattr(kind, "__module__", "").partition(".")[0] in PACKAGES


def find_error(cfg: Config, training: bool) -> FitError | None:
    """What is certain not to fit in a config; None if nothing is known.

    Raises:
        Exception: Of the framework, if the model cannot be built.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        kind = resolve_type(cfg.model.get("backbone"), MODELS)
    if not (isinstance(kind, type) and issubclass(kind, RepMLPNet)):
        return None
    probe = run_probe(cfg)
    misfit = probe.misfit
    if misfit is None or (misfit.part.startswith("auxiliary_head") and not training):
        return None
    # Behind a flattened map, a number depends on the size of the images, which the trial does not know.
    return advise(cfg, probe) if run_probe(cfg, scale=2).misfit == misfit else None


def run_probe(cfg: Config, scale: float = 1.0) -> Probe:
    """Build a config's model and run one image through it.

    Args:
        cfg: The config.
        scale: Factor on the size of the image, which is the backbone's ``img_size``. Default: 1.

    Raises:
        Exception: Of the framework, if the model cannot be built.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        probe = Probe(build_untrained(cfg).float().eval())
        images = random_images(probe.model, 1, scale).float()
        for name, module in probe.model.named_modules():
            module.register_forward_hook(lambda *_, name=name: probe.passed.add(name))
            if name in PARTS:
                module.register_forward_hook(keep_output(probe.outputs, name))
        try:
            call_model(probe, images)
        except Exception as error:
            probe.misfit = find_misfit(probe.model, error)
    return probe


def call_model(probe: Probe, images: Tensor) -> None:
    """Call a model as its framework does, up to the raw outputs of its heads; one with parts of others, to predict."""
    model = probe.model
    if not all(is_known(type(part)) for part in model.modules()):
        model(images, make_samples(model, images), mode="predict")
        return
    call_whole(model, images)
    if isinstance(getattr(model, "neck", None), nn.Module) and "neck" not in probe.passed:  # self-supervised
        model([images, images], mode="loss")


def find_misfit(model: nn.Module, error: Exception) -> Misfit | None:
    """What the module that raised an error got, if it was built for something else; None where that is not known."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    calls = [frame.f_locals for frame in frames if frame.f_code is nn.Module._call_impl.__code__]
    if not calls:
        return None
    raised, inputs = calls[-1]["self"], [*calls[-1]["args"], *calls[-1]["kwargs"].values()]
    part = next((name for name, module in model.named_modules() if module is raised), "")
    if not part or not inputs or part.partition(".")[0] == "backbone":
        return None
    if isinstance(inputs[0], Tensor):
        return compare_channels(part, raised, inputs[0])
    return compare_maps(part, raised, inputs[0], error) if isinstance(inputs[0], (list, tuple)) else None


def compare_channels(part: str, layer: nn.Module, x: Tensor) -> Misfit | None:
    """The number of channels that a layer is built for and that of its input; None where they agree."""
    name = next((name for name in CHANNELS if hasattr(layer, name)), "")
    expected = getattr(layer, name, None)
    expected = expected[-1] if isinstance(expected, tuple) and expected else expected
    if not isinstance(expected, int) or x.dim() < 2 or x.size(CHANNELS[name]) == expected or any(layer.children()):
        return None
    is_map = name == "in_features" and x.dim() == 4
    return Misfit(part, "channels", expected, None if is_map else x.size(CHANNELS[name]))


def compare_maps(part: str, module: nn.Module, maps: Sequence, error: Exception) -> Misfit | None:
    """The maps that a neck or head reads and those that it gets; None where they agree."""
    read, channels = getattr(module, "in_index", None), getattr(module, "in_channels", None)
    read = [read] if isinstance(read, int) else read
    if isinstance(read, (list, tuple)) and isinstance(error, IndexError):
        missing = [i for i in read if isinstance(i, int) and not -len(maps) <= i < len(maps)]
        return Misfit(part, "index", missing[-1], len(maps)) if missing else None
    counts = isinstance(channels, (list, tuple)) and len(channels) != len(maps)
    known = counts and read is None and isinstance(error, (AssertionError, IndexError))
    return Misfit(part, "maps", len(channels), len(maps)) if known else None


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
    gets = "maps instead of vectors" if misfit.given is None else misfit.given
    where = (
        f"the backbone, whose maps have {channels} channels: {misfit.part} was built for {misfit.expected} channels "
        f"and gets {gets}"
    )
    try:
        options, given = find_settings(cfg, probe)
    except Exception:  # no such settings, or a config of a kind that is not understood
        part = misfit.part.rpartition(".")[0] or misfit.part
        return FitError(f"model.{part} does not fit {where}. Change its input channels. {SWITCH}")
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
            # With a neck, the layer gets the channels instead of a side of the map: another number, to set next.
            if "model.neck" in options or fits(probe.misfit.part, run_probe(changed)):
                return options, given
    raise LookupError(probe.misfit.part)


def fits(part: str, probe: Probe) -> bool:
    """Whether a part gave an output in a trial each time that it was called."""
    return part in probe.passed and not (probe.misfit and probe.misfit.part == part)


def iter_settings(settings: ConfigDict, probe: Probe) -> Iterator[tuple[dict[str, object], object]]:
    """Settings that could make a layer fit, the likely ones first, each with the value that the first of them has now.

    These are the ``in_channels`` of the parts around the layer, the outermost first, then their other numbers of
    channels.
    """
    misfit, path = probe.misfit, probe.misfit.part.split(".")
    if misfit.given is None:
        if path[0] == "head":
            yield (
                {"model.neck": [*as_list(settings.get("neck")), dict(type="GlobalAveragePooling")]},
                settings.get("neck"),
            )
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
