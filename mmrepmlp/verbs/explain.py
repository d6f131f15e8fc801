# SPDX-License-Identifier: Apache-2.0
"""Explain why a run failed, and which setting to change.

Nothing here runs before the framework itself has failed. What is not understood keeps its own message and traceback.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from traceback import walk_tb
from types import FrameType
from urllib.error import URLError

from mmengine.config import Config
from torch import Tensor, nn

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import as_list

from .explain_data import WORKER, advise_on_data, advise_on_labels, find_split, summarize

# How layers name the number of channels that they are built for, and the axis of their input that has them.
CHANNELS = {"in_channels": 1, "num_features": 1, "num_channels": 1, "in_features": -1, "normalized_shape": -1}
BUILDERS = ("build_from_cfg", "build_train_loop", "build_val_loop", "build_test_loop")
UNKNOWN_TYPE = re.compile(r"is not in the \S+ registry|Cannot find \S+ in registry")
OTHER_SIZES = re.compile("image size in a batch should be the same|expects each tensor to be equal size")
WRONG_ARGUMENT = re.compile(
    r"unexpected keyword argument|missing \d+ required|got multiple values for|must contain the key \"type\""
)


class ExplainedError(MMRepMLPError):
    """What a framework raised, with advice; the error itself is its cause.

    Args:
        message: What failed, and what to set.
        options: The settings to change, by dotted names, where they are known.
    """

    def __init__(self, message: str, options: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.options = dict(options or {})


@contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Explain what a framework raises while it builds or runs what a config describes.

    Args:
        cfg: The config.

    Raises:
        ExplainedError: A part of the model got other feature maps than it was built for, images of a batch do not go
            together, a dataset is not there, empty or cannot be read, or predictions cannot be merged. Every other
            error stays as it is.
    """
    try:
        yield
    except MMRepMLPError:
        raise
    except Exception as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        for advise in ADVISERS:
            advice = None
            with suppress(Exception):  # of configs and models of a kind that is not understood
                advice = advise(error, frames, cfg)
            if advice:
                text, options = advice
                raise ExplainedError(f"{summarize(error)} {text}", options) from error
        raise


def explain(error: BaseException) -> str | None:
    """What to print of an error that ended a command; None where its traceback has to be shown.

    In one line go errors of this package, files and packages that are not there, failed downloads, and types and
    arguments of a config that do not exist.
    """
    if isinstance(error, URLError):
        return f"A download failed: {error.reason}. Put the file where the config expects it, or check your connection."
    if getattr(error, "name", None) == "pkg_resources":
        return "MMEngine needs pkg_resources, which setuptools 81 removed: pip install 'setuptools<81'."
    if isinstance(error, (OSError, ImportError)):
        return str(error).rpartition("\n")[2] if WORKER in str(error) else str(error)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    own = isinstance(error, ValueError) and frames and frames[-1].f_globals.get("__name__", "").startswith("mmrepmlp.")
    if own or isinstance(error, MMRepMLPError):
        return str(error)
    in_builder = any(frame.f_code.co_name in BUILDERS for frame in frames)
    found = explain_build(error, frames[-1]) if in_builder and isinstance(error, (KeyError, TypeError)) else None
    return found or (explain(error.__cause__) if error.__cause__ else None)


def explain_build(error: KeyError | TypeError, frame: FrameType) -> str | None:
    """Name the type or the argument in a config that does not exist; None where something else ended a constructor."""
    text = str(error.args[0]) if error.args else ""
    if UNKNOWN_TYPE.search(text):
        kind = (frame.f_locals.get("cfg") or {}).get("type", text)  # mmcv's text says None in place of the name
        advice = "Correct the name, or add the module that registers it to custom_imports."
        return f"type={kind!r} in the config is unknown. {advice}"
    if not WRONG_ARGUMENT.search(text):
        return None
    advice = "Correct its arguments in the config."
    if "'pretrained'" in text:  # which EncoderDecoder of mmsegmentation hands on to its backbone
        advice = "Set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...) in place of model.pretrained."
    return f"A part of the config cannot be built: {text}. {advice}"


def advise_on_batch(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain that a batch has too few images for a batch norm, or images of several sizes."""
    owners = [frame.f_locals.get("self") for frame in frames]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    paths = {module: name.removeprefix("module.") for name, module in modules[0].named_modules()} if modules else {}
    if label := re.search(r"Target (\d+) is out of bounds", str(error)):
        head = next(module for module in reversed(modules) if hasattr(module, "num_classes"))
        setting = f"model.{paths[head]}.num_classes"
        return f"There is a label {label[1]}, and {setting}={head.num_classes}. Set it to more, or correct labels.", {}
    if "Expected more than 1 value per channel" in str(error):
        loader = "train_dataloader"
        advice = f"{loader}.batch_size to 2 or more"
        if cfg[loader].batch_size > 1:
            advice = f"{loader}{'.batch_sampler' * bool(cfg[loader].get('batch_sampler'))}.drop_last=True"
        name = f"model.{paths[modules[-1]]}"
        return f"A batch has one image, of which the batch norm {name} gets a map of 1 x 1. Set {advice}.", {}
    places = " ".join([str(error), *(f"{frame.f_code.co_filename} {frame.f_code.co_name}" for frame in frames)])
    if OTHER_SIZES.search(str(error)) and re.search("data_preprocessor|collate", places):
        loader = f"{find_split(owners)}_dataloader"
        text = f"The images of a batch have different sizes. Set {loader}.batch_size=1, or resize them to one size in"
        return f"{text} {loader}.dataset.pipeline.", {}
    return None


def advise_on_model(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain in which part of a model the feature maps do not fit, and what to set."""
    calls = [(f.f_locals["self"], first_input(f)) for f in frames if isinstance(f.f_locals.get("self"), nn.Module)]
    whole, layer = calls[0][0], calls[-1][0]
    path = next(name for name, module in whole.named_modules() if module is layer).split(".")
    # Names begin at the model that has the backbone: without the "module." or "student." of what is around it.
    depth = next(i for i in range(len(path)) if hasattr(whole.get_submodule(".".join(path[:i])), "backbone"))
    model, path = whole.get_submodule(".".join(path[:depth])), path[depth:]
    if path[0] == "backbone":
        return advise_on_images(find_model(cfg)[0], model.backbone, layer, calls[-1][1])
    part = set(model.get_submodule(path[0]).modules())
    maps = next(given for module, given in calls if module in part)
    channels = [x.size(1) for x in as_list(maps) if isinstance(x, Tensor)]
    source = "neck" if path[0] != "neck" and getattr(model, "neck", None) else "backbone"
    gives = f"the {source} gives feature maps of {channels} channels"
    owner, settings = find_model(cfg)
    name, given = f"{owner}.{'.'.join(path)}", next(given for module, given in calls if module is layer)
    if isinstance(given, (list, tuple)):
        return advise_on_maps(error, name, layer, len(given), gives)
    if isinstance(layer, nn.AdaptiveAvgPool1d) and given.dim() == 4:
        setting = ".".join([owner, *path[:-1], "dim"])
        return f"{name} averages sequences, and gets feature maps: {gives}. Set {setting}=2.", {setting: 2}
    attribute = next(attribute for attribute in CHANNELS if hasattr(layer, attribute))
    built_for, got = getattr(layer, attribute), given.size(CHANNELS[attribute])
    built_for = built_for[-1] if isinstance(built_for, tuple) else built_for
    by_axis = attribute != "normalized_shape" or type(layer) is nn.LayerNorm  # others normalize another axis
    if got == built_for or any(layer.children()) or not by_axis:
        return None
    if path[0] == "head" and attribute == "in_features" and given.dim() == 4:
        necks = [*as_list(settings.get("neck")), dict(type="GlobalAveragePooling")]
        text = f"{name} takes vectors of {built_for} numbers, and gets feature maps: {gives}"
        return f"{text}. Set {owner}.neck={necks}.", {f"{owner}.neck": necks}
    options = {f"{owner}.{key}": value for key, value in find_options(settings, model, path, channels, built_for, got)}
    advice = " and ".join(f"{key}={value}" for key, value in options.items())
    advice = f"Set {advice}." if options else "Change its input channels, model.neck, or model.backbone.out_indices."
    return f"{name} was built for {built_for} channels and gets {got}; {gives}. {advice}", options


def advise_on_images(owner: str, backbone: nn.Module, layer: nn.Module, given: Tensor) -> tuple[str, dict] | None:
    """Explain that images have other channels than the first layer of a backbone."""
    takes_setting = "in_channels" in inspect.signature(type(backbone)).parameters
    first = next(part for part in backbone.modules() if isinstance(part, nn.Conv2d))
    if not takes_setting or layer is not first or given.size(1) == first.in_channels:
        return None
    setting, channels = f"{owner}.backbone.in_channels", given.size(1)
    text = f"The backbone was built for images of {first.in_channels} channels and gets {channels}"
    return f"{text}. Set {setting}={channels}, or another data_preprocessor.", {setting: channels}


def first_input(frame: FrameType) -> object:
    """The first argument of a method beside ``self``; None where there is none."""
    code, values = frame.f_code, frame.f_locals
    named = values.get(code.co_varnames[1]) if code.co_argcount > 1 else None
    given = [named, *values.get("args", ()), *values.get("kwargs", {}).values()]
    return next((value for value in given if value is not None), None)


def find_model(cfg: Config) -> tuple[str, Mapping]:
    """The name and the config of what has the backbone: the model, or one inside it, such as a ``detector``."""
    if "backbone" in cfg.model:
        return "model", cfg.model
    key, part = next((key, part) for key, part in cfg.model.items() if isinstance(part, Mapping) and "backbone" in part)
    return "model" if key == "module" else f"model.{key}", part  # test-time augmentation puts a model in "module"


def advise_on_maps(error: Exception, name: str, part: nn.Module, maps: int, gives: str) -> tuple[str, dict] | None:
    """Explain that a neck or head reads more or other feature maps than it gets."""
    read, channels = getattr(part, "in_index", None), getattr(part, "in_channels", None)
    missing = [index for index in as_list(read) if not -maps <= index < maps]
    if isinstance(error, IndexError) and missing:
        text = f"{name} takes feature map {missing[-1]}, counted from 0, but there are only {maps}; {gives}. Set "
        return f"{text}{name}.in_index to less, or model.backbone.out_indices to more, e.g. (0, 1, 2, 3).", {}
    if read is None and isinstance(error, (AssertionError, IndexError)) and len(channels) != maps:
        text = f"{name}.in_channels={list(channels)} takes {len(channels)} feature maps, but gets {maps}; {gives}. Set "
        return f"{text}model.backbone.out_indices, e.g. to (0, 1, 2, 3), and {name}.in_channels to match.", {}
    return None


def find_options(
    settings: Mapping, model: nn.Module, path: list[str], channels: list[int], built_for: int, got: int
) -> list[tuple[str, object]]:
    """The settings that make a layer fit what it gets: ``in_channels`` of a part around it, the outermost first, or
    another number there that the layer was built for; empty where none is known."""
    parts = [(name, find_part(settings, name)) for name in (".".join(path[:i]) for i in range(1, len(path)))]
    parts = [(name, part, model.get_submodule(name)) for name, part in parts if part]
    several = path[0] != "head" and len(set(channels)) > 1  # which one number cannot fit
    numbers = []
    for name, part, module in parts:
        present = part.get("in_channels", getattr(module, "in_channels", None))
        index = part.get("in_index", getattr(module, "in_index", None))
        right = None
        if isinstance(present, (list, tuple)):
            read = index if isinstance(index, (list, tuple)) else range(len(channels))
            right = match_channels(list(present), [channels[i] for i in read], built_for, got)
        elif index is not None or not several:
            right = got if present == built_for else None
            numbers += [(f"{name}.{key}", got) for key, value in part.items() if value == built_for]
            times = built_for // present if present and built_for % present == 0 else 0
            if times > 1 and got % times == 0:  # a flattened map, which has each channel several times
                numbers.append((f"{name}.in_channels", got // times))
        if right:
            concatenated = sum(right) if isinstance(right, list) else right
            without_convs = [(f"{name}.channels", concatenated)] if part.get("num_convs") == 0 else []
            right = type(present)(right)
            return [(f"{name}.in_channels", right), *without_convs]
    return sorted(numbers, key=lambda number: "channels" not in number[0])[:1]


def match_channels(present: list[int], given: list[int], built_for: int, got: int) -> list[int] | None:
    """The channels of the maps in the order that explains what a layer got; None if none does."""
    for right in (given, given[::-1]):  # some necks count from the last map on
        if (built_for, got) in [*zip(present, right), (sum(present), sum(right))] and right != present:
            return right
    return None


def find_part(settings: object, name: str) -> Mapping:
    """The config of a part by its name in the model; empty if the config has none of this name."""
    for key in name.split("."):
        if isinstance(settings, Mapping):
            settings = settings.get(key)
        else:
            settings = settings[int(key)] if isinstance(settings, list) and key.isdigit() else None
    return settings if isinstance(settings, Mapping) else {}


def advise_on_merging(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Say that test-time augmentation cannot merge the predictions of a model."""
    merging = next(frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "merge_preds")
    text = f"{type(merging).__name__} cannot merge the predictions of this model."
    return f"{text} Set another tta_model, with its tta_pipeline, in the config, or omit --tta.", {}


def advise_on_resuming(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Say that the optimizer cannot go on from the state that a checkpoint has of it."""
    if not (cfg.get("resume") and any(f.f_globals["__name__"].startswith("torch.optim.") for f in frames[-3:])):
        return None
    text = f"The state of the optimizer in {cfg.get('load_from')} does not fit the optimizer of this config."
    return f"{text} Resume with the optim_wrapper it was trained with, or start from its weights: load_from=...", {}


ADVISERS = (advise_on_batch, advise_on_model, advise_on_data, advise_on_labels, advise_on_merging, advise_on_resuming)
