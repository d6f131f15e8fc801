# SPDX-License-Identifier: Apache-2.0
"""Whether neck and heads fit the maps of a RepMLPNet, found out by trying."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

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
    if not (isinstance(kind, type) and issubclass(kind, RepMLPNet)):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            model = build_untrained(cfg).float().eval()
            images = random_images(model, 1).float()
            maps = model.backbone(images)
        except Exception:  # the run itself will raise it
            return
        features = maps
        with watch_channels(model):
            try:
                features = try_neck(model, maps)
                try_heads(model, images, features)
            except ChannelsDiffer as error:
                raise advise(cfg.model, model, error, maps, features) from None


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
def watch_channels(model: nn.Module) -> Iterator[None]:
    """Raise :class:`ChannelsDiffer` where a layer outside of the backbone gets another number of channels."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not name.startswith("backbone."):
                expected, axis = input_channels(module)
                if expected:
                    hook = make_hook(name, expected, axis)
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


def make_hook(name: str, expected: int, axis: int) -> Callable[[nn.Module, tuple], None]:
    """A forward pre-hook that compares the channels of a layer's input, where that is a batch of maps or vectors."""

    def hook(module: nn.Module, args: tuple) -> None:
        x = args[0] if args else None
        dims = module.weight.dim() if isinstance(module, _ConvNd) else 2
        if isinstance(x, Tensor) and x.dim() >= dims and x.size(axis) != expected:
            raise ChannelsDiffer(name, expected, x.size(axis), isinstance(module, nn.Linear) and x.dim() == 4)

    return hook


def advise(
    settings: ConfigDict, model: nn.Module, error: ChannelsDiffer, maps: tuple[Tensor, ...], features: object
) -> FitError:
    """Explain what to set: the ``in_channels`` of the outermost part around the layer that has them."""
    path = error.layer.split(".")
    if error.is_map and path[0] == "head" and not settings.get("neck"):
        replace = {"_delete_": True} if "neck" in settings else {}
        return FitError(
            f"model.{error.layer} takes vectors, the backbone gives maps of {channels_of(maps)} channels, and there is "
            f"no neck. Set model.neck=dict(type='GlobalAveragePooling'). {SWITCH}",
            {"model.neck": dict(type="GlobalAveragePooling", **replace)},
        )
    names = [".".join(path[: i + 1]) for i in range(len(path) - 1)] or path
    found = f"the backbone, whose maps have {channels_of(maps)} channels: {error}"
    owner, given, indices = next(iter_inputs(settings, model, names), (None, None, None))
    if owner is None:
        return FitError(f"model.{names[-1]} does not fit {found}. Change its input channels. {SWITCH}")
    inputs = channels_of(maps if path[0] == "neck" else features)
    if isinstance(indices, (list, tuple)):
        right = [inputs[i] for i in indices]
    elif isinstance(given, (list, tuple)):
        right = inputs
    else:  # a layer may see each channel several times, as one behind a flattened map does
        right = given * error.given // error.built_for
    setting = f"model.{owner}.in_channels"
    return FitError(f"{setting}={given} does not fit {found}. Set {setting}={right}. {SWITCH}", {setting: right})


def iter_inputs(settings: ConfigDict, model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, object, object]]:
    """Names of the parts that have ``in_channels``, in the config or by default, with these and ``in_index``."""
    for name in names:
        part: object = settings
        for key in name.split("."):
            part = part.get(key) if isinstance(part, Mapping) else part[int(key)] if isinstance(part, list) else None
        part = part if isinstance(part, Mapping) else {}
        module = model.get_submodule(name)
        given = part.get("in_channels", getattr(module, "in_channels", None))
        if given:
            yield name, given, part.get("in_index", getattr(module, "in_index", None))


def channels_of(maps: object) -> list[int]:
    """Numbers of channels of maps or vectors."""
    maps = maps if isinstance(maps, (list, tuple)) else [maps]
    return [x.size(1) for x in maps if isinstance(x, Tensor)]
