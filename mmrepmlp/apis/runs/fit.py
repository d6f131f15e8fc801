# SPDX-License-Identifier: Apache-2.0
"""Whether neck and heads fit the maps of a RepMLPNet, found out by trying."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mmrepmlp.apis.config import resolve_type
from mmrepmlp.apis.forward import call_whole, random_images
from mmrepmlp.apis.model import build_untrained
from mmrepmlp.models import RepMLPNet

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


class ChannelsDiffer(Exception):
    """A layer gets another number of channels than it was built for, which torch is certain to refuse.

    Args:
        layer: Name of the layer in the model.
        built_for: Number of channels that it was built for.
        given: Number that it gets.
        is_map: Whether a fully connected layer gets a map (N, C, H, W) instead of vectors.
    """

    def __init__(self, layer: str, built_for: int, given: int, is_map: bool = False) -> None:
        super().__init__(f"{layer} was built for {built_for} channels and gets {given}")
        self.layer, self.built_for, self.given, self.is_map = layer, built_for, given, is_map


@dataclass
class Probe:
    """One image through a model, as far as it went.

    Attributes:
        model: The model.
        maps: What its backbone gives.
        features: What its heads get.
        error: The layer that does not fit, which ended the trial; None where no layer is known to.
        passed: Names of the layers that fit.
    """

    model: nn.Module
    maps: tuple[Tensor, ...]
    features: object = None
    error: ChannelsDiffer | None = None
    passed: set[str] = field(default_factory=set)


def check_fit(cfg: Config) -> None:
    """Run one image through a model with a RepMLPNet backbone, and explain which channels do not fit.

    Refused is only what is certain to fail: a layer that gets another number of channels than it was built for, and a
    neck or head that reads a map that there is not. Any other error may be due to the trial, and passes.

    Args:
        cfg: A config of mmpretrain, mmsegmentation or mmdetection.

    Raises:
        FitError: A neck or head does not fit; the message says what to set.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        kind = resolve_type(cfg.model.get("backbone"), MODELS)
    if isinstance(kind, type) and issubclass(kind, RepMLPNet):
        try:
            probe = run_probe(cfg)
        except FitError:
            raise
        except Exception:  # the run itself will raise it
            return
        if probe.error:
            raise advise(cfg, probe)


def run_probe(cfg: Config) -> Probe:
    """Build a config's model and run one image through it.

    Raises:
        FitError: A part takes another number of maps than there is.
        Exception: Of the framework, if the model or its backbone does not work.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = build_untrained(cfg).float().eval()
        images = random_images(model, 1).float()
        maps = model.backbone(images)
        probe = Probe(model, maps, features=maps)
        with watch_channels(model, probe.passed):
            try:
                probe.features = try_neck(model, maps)
                try_heads(model, images, probe.features)
            except ChannelsDiffer as error:
                probe.error = error
    return probe


def try_neck(model: nn.Module, maps: tuple[Tensor, ...]) -> object:
    """Call a model's neck; without one, the maps are what the heads get.

    Raises:
        FitError: It is built for another number of maps.
        ChannelsDiffer: A layer of it does not fit.
    """
    neck = getattr(model, "neck", None)
    if not isinstance(neck, nn.Module):
        return maps
    try:
        return neck(maps)
    except ChannelsDiffer:
        raise
    except (AssertionError, IndexError) as error:
        wanted = getattr(neck, "in_channels", None)
        if isinstance(wanted, (list, tuple)) and len(wanted) != len(maps):
            raise FitError(
                f"model.neck.in_channels={list(wanted)} takes {len(wanted)} maps, but the backbone gives {len(maps)}, "
                f"with {channels_of(maps)} channels. Set model.backbone.out_indices, e.g. to (0, 1, 2, 3), and "
                f"model.neck.in_channels to the channels of its maps, {channels_of(maps)} as it is. {SWITCH}"
            ) from error
        return None
    except Exception:
        return None


def try_heads(model: nn.Module, images: Tensor, features: object) -> None:
    """Call a model's heads, as far as they can be called.

    Raises:
        FitError: One reads a map that there is not.
        ChannelsDiffer: A layer of one does not fit.
    """
    for name, indices in read_maps(model):
        if isinstance(features, (list, tuple)) and not all(-len(features) <= i < len(features) for i in indices):
            raise FitError(
                f"model.{name} takes map {max(indices)}, counted from 0, but there are only {len(features)}. Set "
                f"model.backbone.out_indices, e.g. to (0, 1, 2, 3). {SWITCH}"
            )
    try:
        call_whole(model, images)
    except ChannelsDiffer:
        raise
    except Exception:
        pass


def read_maps(model: nn.Module) -> Iterator[tuple[str, Sequence[int]]]:
    """Names of a segmentor's heads, and indices of the maps that each of them reads."""
    for name, head in model.named_modules():
        indices = getattr(head, "in_index", None)
        indices = indices if isinstance(indices, (list, tuple)) else [indices]
        if name.startswith(("decode_head", "auxiliary_head")) and all(isinstance(i, int) for i in indices):
            yield name, indices


@contextmanager
def watch_channels(model: nn.Module, passed: set[str]) -> Iterator[None]:
    """Raise :class:`ChannelsDiffer` where a layer outside of the backbone gets another number of channels.

    Args:
        model: The model.
        passed: Takes up the names of the layers that get what they were built for.
    """
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not name.startswith("backbone."):
                expected, axis = input_channels(module)
                if expected:
                    hook = make_hook(name, expected, axis, passed)
                    stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def input_channels(layer: nn.Module) -> tuple[int | None, int]:
    """Number of channels that a layer is built for, and their axis in its input; None where it takes any."""
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return None, 0
    if isinstance(layer, _ConvNd):
        return layer.in_channels, 1
    if isinstance(layer, _BatchNorm):
        return layer.num_features, 1
    return (layer.in_features, -1) if isinstance(layer, nn.Linear) else (None, 0)


def make_hook(name: str, expected: int, axis: int, passed: set[str]) -> Callable[[nn.Module, tuple], None]:
    """A forward pre-hook that compares the channels of a layer's input, where that is a batch of maps or vectors."""

    def hook(module: nn.Module, args: tuple) -> None:
        x = args[0] if args else None
        dims = module.weight.dim() if isinstance(module, _ConvNd) else 2
        if isinstance(x, Tensor) and x.dim() >= dims and x.size(axis) != expected:
            raise ChannelsDiffer(name, expected, x.size(axis), isinstance(module, nn.Linear) and x.dim() == 4)
        passed.add(name)

    return hook


def advise(cfg: Config, probe: Probe) -> FitError:
    """Explain what does not fit, and what to set if that is known."""
    where = f"the backbone, whose maps have {channels_of(probe.maps)} channels: {probe.error}"
    try:
        options, given = find_settings(cfg, probe)
    except Exception:  # no such settings, or a config of a kind that is not understood
        part = probe.error.layer.rpartition(".")[0] or probe.error.layer
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
            if "model.neck" in options or probe.error.layer in run_probe(changed).passed:
                return options, given
    raise LookupError(probe.error.layer)


def iter_settings(settings: ConfigDict, probe: Probe) -> Iterator[tuple[dict[str, object], object]]:
    """Settings that could make a layer fit, the likely ones first, each with the value that the first of them has now.

    These are the ``in_channels`` of the parts around the layer, the outermost first, then their other numbers of
    channels.
    """
    error, path = probe.error, probe.error.layer.split(".")
    if error.is_map and path[0] == "head" and not settings.get("neck"):
        replace = {"_delete_": True} if "neck" in settings else {}
        yield {"model.neck": dict(type="GlobalAveragePooling", **replace)}, None
    inputs = channels_of(probe.maps if path[0] == "neck" else probe.features)
    others = []
    for name in [".".join(path[: i + 1]) for i in range(len(path) - 1)]:
        part, module = find_part(settings, name), probe.model.get_submodule(name)
        setting, given = f"model.{name}.in_channels", part.get("in_channels", getattr(module, "in_channels", None))
        indices = part.get("in_index", getattr(module, "in_index", None))
        if isinstance(given, (list, tuple)):
            read = indices if isinstance(indices, (list, tuple)) else range(len(inputs))
            yield {setting: type(given)(inputs[i] for i in read)}, given
            others.append(({setting: type(given)(inputs[i] for i in reversed(read))}, given))  # from the last map on
        elif given:  # a layer may see each channel several times, as one behind a flattened map does
            right = given * error.given // error.built_for
            yield {setting: right}, given
            if part.get("channels") == given:  # a head without convolutions
                others.append(({setting: right, f"model.{name}.channels": right}, given))
        for key, value in part.items():
            if "channels" in key and key != "in_channels" and value == error.built_for:
                others.append(({f"model.{name}.{key}": error.given}, value))
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
