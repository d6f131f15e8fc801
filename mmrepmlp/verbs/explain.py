# SPDX-License-Identifier: Apache-2.0
"""Explain why a run failed, and which setting to change.

Nothing here runs until the framework itself has failed. Unrecognized errors keep their own message and traceback.
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

# Attributes of layers that hold the expected number of channels, with the channel axis of the input.
CHANNELS = {"in_channels": 1, "num_features": 1, "num_channels": 1, "in_features": -1, "normalized_shape": -1}
BUILDERS = ("build_from_cfg", "build_train_loop", "build_val_loop", "build_test_loop")
UNKNOWN_TYPE = re.compile(r"is not in the \S+ registry|Cannot find \S+ in registry")
OTHER_SIZES = re.compile("image size in a batch should be the same|expects each tensor to be equal size")
WRONG_ARGUMENT = re.compile(
    r"unexpected keyword argument|missing \d+ required|got multiple values for|must contain the key \"type\""
)


class ExplainedError(MMRepMLPError):
    """Error of a framework with advice added; the original error is its ``__cause__``.

    Args:
        message: What failed, and which setting to change.
        options: Values to set, by dotted config name. Default: None, unknown.
    """

    def __init__(self, message: str, options: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.options = dict(options or {})


@contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Add advice to errors that a framework raises while it builds or runs a config.

    Args:
        cfg: The config that is built or run.

    Raises:
        ExplainedError: A part of the model got other feature maps than it was built for; the images of a batch differ
            in size; a label is out of range; a dataset is missing, empty or unreadable; a metric lacks labels;
            predictions cannot be merged; or the optimizer does not fit the checkpoint. All other errors are unchanged.
    """
    try:
        yield
    except MMRepMLPError:
        raise
    except Exception as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        for advise in ADVISERS:
            advice = None
            with suppress(Exception):  # configs and models may be of any kind
                advice = advise(error, frames, cfg)
            if advice:
                text, options = advice
                raise ExplainedError(f"{summarize(error)} {text}", options) from error
        raise


def explain(error: BaseException) -> str | None:
    """Return the message to print for an error that ended a command; None if its traceback is needed.

    A message is enough for errors of this package, missing files and packages, failed downloads, and unknown types or
    arguments in a config.
    """
    if isinstance(error, URLError):
        return f"A download failed: {error.reason}. Put the file where the config expects it, or check your connection."
    if getattr(error, "name", None) == "pkg_resources":
        return "MMEngine needs pkg_resources, which setuptools 81 removed: pip install 'setuptools<81'."
    if isinstance(error, (OSError, ImportError)):
        return str(error).rpartition("\n")[2] if WORKER in str(error) else str(error)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = isinstance(error, ValueError) and frames and frames[-1].f_globals.get("__name__", "").startswith("mmrepmlp.")
    if ours or isinstance(error, MMRepMLPError):
        return str(error)
    in_builder = any(frame.f_code.co_name in BUILDERS for frame in frames)
    found = explain_build(error, frames[-1]) if in_builder and isinstance(error, (KeyError, TypeError)) else None
    return found or (explain(error.__cause__) if error.__cause__ else None)


def explain_build(error: KeyError | TypeError, frame: FrameType) -> str | None:
    """Name the unknown type or argument in a config; None if a constructor failed for another reason."""
    text = str(error.args[0]) if error.args else ""
    if UNKNOWN_TYPE.search(text):
        kind = (frame.f_locals.get("cfg") or {}).get("type", text)  # mmcv's message says None instead of the name
        advice = "Correct the name, or add the module that registers it to custom_imports."
        return f"type={kind!r} in the config is unknown. {advice}"
    if not WRONG_ARGUMENT.search(text):
        return None
    advice = "Correct its arguments in the config."
    if "'pretrained'" in text:  # mmsegmentation's EncoderDecoder passes it on to its backbone
        advice = "Set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...) instead of model.pretrained."
    return f"A part of the config cannot be built: {text}. {advice}"


def advise_on_batch(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain a label out of range, a batch too small for a batch norm, or images of different sizes."""
    owners = [frame.f_locals.get("self") for frame in frames]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    paths = {module: name.removeprefix("module.") for name, module in modules[0].named_modules()} if modules else {}
    if label := re.search(r"Target (\d+) is out of bounds", str(error)):
        head = next(module for module in reversed(modules) if hasattr(module, "num_classes"))
        setting = f"model.{paths[head]}.num_classes"
        return f"There is a label {label[1]}, but {setting}={head.num_classes}. Increase it, or correct the labels.", {}
    if "Expected more than 1 value per channel" in str(error):
        loader = "train_dataloader"
        advice = f"{loader}.batch_size to 2 or more"
        if cfg[loader].batch_size > 1:
            advice = f"{loader}{'.batch_sampler' * bool(cfg[loader].get('batch_sampler'))}.drop_last=True"
        name = f"model.{paths[modules[-1]]}"
        return f"A batch has one image, and its feature map is 1 x 1 at the batch norm {name}. Set {advice}.", {}
    places = " ".join([str(error), *(f"{frame.f_code.co_filename} {frame.f_code.co_name}" for frame in frames)])
    if OTHER_SIZES.search(str(error)) and re.search("data_preprocessor|collate", places):
        loader = f"{find_split(owners)}_dataloader"
        text = f"The images of a batch have different sizes. Set {loader}.batch_size=1, or resize them to one size in"
        return f"{text} {loader}.dataset.pipeline.", {}
    return None


def advise_on_model(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain which part of a model does not fit its feature maps, and which setting to change."""
    calls = [(f.f_locals["self"], first_input(f)) for f in frames if isinstance(f.f_locals.get("self"), nn.Module)]
    whole, layer = calls[0][0], calls[-1][0]
    path = next(name for name, module in whole.named_modules() if module is layer).split(".")
    # Names start at the model that has the backbone, without the "module." or "student." of its wrapper.
    depth = next(i for i in range(len(path)) if hasattr(whole.get_submodule(".".join(path[:i])), "backbone"))
    model, path = whole.get_submodule(".".join(path[:depth])), path[depth:]
    if path[0] == "backbone":
        return advise_on_images(find_model(cfg)[0], model.backbone, layer, calls[-1][1])
    part = set(model.get_submodule(path[0]).modules())
    maps = next(inputs for module, inputs in calls if module in part)
    channels = [x.size(1) for x in as_list(maps) if isinstance(x, Tensor)]
    source = "neck" if path[0] != "neck" and getattr(model, "neck", None) else "backbone"
    gives = f"the {source} gives feature maps of {channels} channels"
    owner, settings = find_model(cfg)
    name, inputs = f"{owner}.{'.'.join(path)}", next(inputs for module, inputs in calls if module is layer)
    if isinstance(inputs, (list, tuple)):
        return advise_on_maps(error, name, layer, len(inputs), gives)
    if isinstance(layer, nn.AdaptiveAvgPool1d) and inputs.dim() == 4:
        setting = ".".join([owner, *path[:-1], "dim"])
        return f"{name} averages sequences, but gets feature maps: {gives}. Set {setting}=2.", {setting: 2}
    attribute = next(attribute for attribute in CHANNELS if hasattr(layer, attribute))
    built_for, got = getattr(layer, attribute), inputs.size(CHANNELS[attribute])
    built_for = built_for[-1] if isinstance(built_for, tuple) else built_for
    by_axis = attribute != "normalized_shape" or type(layer) is nn.LayerNorm  # others normalize another axis
    if got == built_for or any(layer.children()) or not by_axis:
        return None
    if path[0] == "head" and attribute == "in_features" and inputs.dim() == 4:
        necks = [*as_list(settings.get("neck")), dict(type="GlobalAveragePooling")]
        text = f"{name} takes vectors of {built_for} numbers, but gets feature maps: {gives}"
        return f"{text}. Set {owner}.neck={necks}.", {f"{owner}.neck": necks}
    options = {f"{owner}.{key}": value for key, value in find_options(settings, model, path, channels, built_for, got)}
    advice = " and ".join(f"{key}={value}" for key, value in options.items())
    advice = f"Set {advice}." if options else "Change its input channels, model.neck, or model.backbone.out_indices."
    return f"{name} was built for {built_for} channels and gets {got}; {gives}. {advice}", options


def advise_on_images(owner: str, backbone: nn.Module, layer: nn.Module, images: Tensor) -> tuple[str, dict] | None:
    """Explain that images have another number of channels than the first layer of a backbone."""
    takes_setting = "in_channels" in inspect.signature(type(backbone)).parameters
    first = next(part for part in backbone.modules() if isinstance(part, nn.Conv2d))
    if not takes_setting or layer is not first or images.size(1) == first.in_channels:
        return None
    setting, channels = f"{owner}.backbone.in_channels", images.size(1)
    text = f"The backbone was built for images of {first.in_channels} channels and gets {channels}"
    return f"{text}. Set {setting}={channels}, or another data_preprocessor.", {setting: channels}


def first_input(frame: FrameType) -> object:
    """Return the first argument of a method after ``self``; None if there is none."""
    code, values = frame.f_code, frame.f_locals
    named = values.get(code.co_varnames[1]) if code.co_argcount > 1 else None
    arguments = [named, *values.get("args", ()), *values.get("kwargs", {}).values()]
    return next((value for value in arguments if value is not None), None)


def find_model(cfg: Config) -> tuple[str, Mapping]:
    """Return the name and config of the model that has the backbone, or of one inside it, such as a ``detector``."""
    if "backbone" in cfg.model:
        return "model", cfg.model
    key, part = next((key, part) for key, part in cfg.model.items() if isinstance(part, Mapping) and "backbone" in part)
    return "model" if key == "module" else f"model.{key}", part  # test-time augmentation puts a model in "module"


def advise_on_maps(error: Exception, name: str, part: nn.Module, maps: int, gives: str) -> tuple[str, dict] | None:
    """Explain that a neck or head expects more or other feature maps than it gets."""
    read, channels = getattr(part, "in_index", None), getattr(part, "in_channels", None)
    missing = [index for index in as_list(read) if not -maps <= index < maps]
    if isinstance(error, IndexError) and missing:
        text = f"{name} takes feature map {missing[-1]}, counted from 0, but there are only {maps}; {gives}. Reduce "
        return f"{text}{name}.in_index, or extend model.backbone.out_indices, e.g. to (0, 1, 2, 3).", {}
    if read is None and isinstance(error, (AssertionError, IndexError)) and len(channels) != maps:
        text = f"{name}.in_channels={list(channels)} takes {len(channels)} feature maps, but gets {maps}; {gives}. Set "
        return f"{text}model.backbone.out_indices, e.g. to (0, 1, 2, 3), and {name}.in_channels to match.", {}
    return None


def find_options(
    settings: Mapping, model: nn.Module, path: list[str], channels: list[int], built_for: int, got: int
) -> list[tuple[str, object]]:
    """Find settings that make a layer fit its input; empty if none is found.

    These are ``in_channels`` of an enclosing part, the outermost first, or another number there that the layer was
    built for.
    """
    parts = [(name, find_part(settings, name)) for name in (".".join(path[:i]) for i in range(1, len(path)))]
    parts = [(name, part, model.get_submodule(name)) for name, part in parts if part]
    several = path[0] != "head" and len(set(channels)) > 1  # no single number fits
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
            if times > 1 and got % times == 0:  # a flattened feature map repeats each channel
                numbers.append((f"{name}.in_channels", got // times))
        if right:
            concatenated = sum(right) if isinstance(right, list) else right
            without_convs = [(f"{name}.channels", concatenated)] if part.get("num_convs") == 0 else []
            right = type(present)(right)
            return [(f"{name}.in_channels", right), *without_convs]
    return sorted(numbers, key=lambda number: "channels" not in number[0])[:1]


def match_channels(present: list[int], channels: list[int], built_for: int, got: int) -> list[int] | None:
    """Order the channels of the feature maps so that they explain what a layer got; None if neither order does."""
    for right in (channels, channels[::-1]):  # some necks count from the last feature map
        if (built_for, got) in [*zip(present, right), (sum(present), sum(right))] and right != present:
            return right
    return None


def find_part(settings: object, name: str) -> Mapping:
    """Find the config of a part by its name in the model; empty if there is none."""
    for key in name.split("."):
        if isinstance(settings, Mapping):
            settings = settings.get(key)
        else:
            settings = settings[int(key)] if isinstance(settings, list) and key.isdigit() else None
    return settings if isinstance(settings, Mapping) else {}


def advise_on_merging(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain that test-time augmentation cannot merge the predictions of a model."""
    merging = next(frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "merge_preds")
    text = f"{type(merging).__name__} cannot merge the predictions of this model."
    return f"{text} Set another tta_model, with its tta_pipeline, in the config, or omit --tta.", {}


def advise_on_resuming(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain that the optimizer state in a checkpoint does not fit the optimizer of the config."""
    if not (cfg.get("resume") and any(f.f_globals["__name__"].startswith("torch.optim.") for f in frames[-3:])):
        return None
    text = f"The optimizer state in {cfg.get('load_from')} does not fit the optimizer of this config."
    return f"{text} Resume with the optim_wrapper of that training, or start from its weights: load_from=...", {}


ADVISERS = (advise_on_batch, advise_on_model, advise_on_data, advise_on_labels, advise_on_merging, advise_on_resuming)
