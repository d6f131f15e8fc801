# SPDX-License-Identifier: Apache-2.0
"""One image through the model of a config, and what the part that raises an error was built for."""

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from traceback import walk_tb

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.models.parts import PARTS
from mmrepmlp.verbs.forward import call_whole, keep_output, make_samples, random_images
from mmrepmlp.verbs.model import build_untrained

# Packages whose models call their parts as known here; of others, only predictions are known to be what a run needs.
PACKAGES = ("mmpretrain", "mmseg", "mmdet", "mmcv", "mmengine", "mmrepmlp", "torch")
# How layers name the number of channels that they are built for, and the axis of their input that has them.
CHANNELS = {"in_channels": 1, "num_features": 1, "num_channels": 1, "in_features": -1, "normalized_shape": -1}

POOLING = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


@dataclass(frozen=True)
class Misfit:
    """A part of a model that raised an error, and was built for something else than it got.

    Attributes:
        part: Its name in the model.
        unit: What numbers differ: ``channels``; ``width``, where a fully connected layer gets four axes, whose last may
            be the width of a map; ``axes`` of a map to pool; ``maps``; or ``index`` of a map.
        expected: Number that it was built for.
        given: Number that it got.
    """

    part: str
    unit: str
    expected: int
    given: int


@dataclass
class Probe:
    """One image through a model, as far as it went.

    Attributes:
        model: The model.
        outputs: What ``backbone`` and ``neck`` gave, by these names.
        error: What ended the trial; None where nothing did.
        misfit: What this error is about; None where it is of another kind.
        passed: Names of the parts that gave an output.
    """

    model: nn.Module
    outputs: dict[str, object] = field(default_factory=dict)
    error: Exception | None = None
    misfit: Misfit | None = None
    passed: set[str] = field(default_factory=set)


def run_probe(cfg: Config, scale: float = 1.0) -> Probe:
    """Build a config's model and run one image through it.

    Where everything fits, that is seen on torch's meta device, which computes shapes alone; anything else is tried
    with numbers.

    Args:
        cfg: The config.
        scale: Factor on the size of the image, which is the backbone's ``img_size``. Default: 1.

    Raises:
        Exception: Of the framework, if the model cannot be built.
    """
    with suppress(Exception):  # of parts that read numbers as well
        probe = build_probe(cfg, "meta")
        for name, module in probe.model.named_modules():
            if name.partition(".")[0] != "backbone":
                module.register_forward_pre_hook(functools.partial(expect_channels, name))
            if type(module).forward is _BatchNorm.forward:
                module.forward = functools.partial(give_shape, module)
        call_model(probe, scale, "meta")
        return probe
    probe = build_probe(cfg, "cpu")
    try:
        call_model(probe, scale, "cpu")
    except Exception as error:
        probe.error, probe.misfit = error, find_misfit(probe.model, error)
    return probe


def build_probe(cfg: Config, device: str) -> Probe:
    """Build a config's model, with hooks that keep what the trial is to show."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        probe = Probe(build_untrained(cfg).float().eval())
    for name, module in probe.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: probe.passed.add(name))
        if name in PARTS:
            module.register_forward_hook(keep_output(probe.outputs, name))
    return probe


def expect_channels(part: str, layer: nn.Module, inputs: tuple) -> None:
    """Raise an error where a layer gets other channels than it was built for, which not all do on the meta device."""
    if inputs and isinstance(inputs[0], Tensor) and compare_channels(part, layer, inputs[0]):
        raise ValueError(part)


def give_shape(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch norm gives on the meta device, where torch spells it out in half of the time of a trial."""
    norm._check_input_dim(x)
    return torch.empty_like(x)


@torch.no_grad()
def call_model(probe: Probe, scale: float, device: str) -> None:
    """Call a model as its framework does, up to the raw outputs of its heads; one with parts of others, to predict."""
    model = probe.model
    images = random_images(model, 1, scale).float().to(device)
    with torch.random.fork_rng(devices=[]), torch.device(device):
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
        return compare_axes(part, raised, inputs[0]) or compare_channels(part, raised, inputs[0])
    return compare_maps(part, raised, inputs[0], error) if isinstance(inputs[0], (list, tuple)) else None


def compare_axes(part: str, layer: nn.Module, x: Tensor) -> Misfit | None:
    """The number of axes that a pooling layer is built for and that of its input; None where they agree."""
    expected = next((2 + dims for dims, kind in POOLING.items() if isinstance(layer, kind)), x.dim())
    return None if x.dim() in (expected, expected - 1) else Misfit(part, "axes", expected, x.dim())


def compare_channels(part: str, layer: nn.Module, x: Tensor) -> Misfit | None:
    """The number of channels that a layer is built for and that of its input; None where they agree."""
    name = next((name for name in CHANNELS if hasattr(layer, name)), "")
    expected = getattr(layer, name, None)
    expected = expected[-1] if isinstance(expected, tuple) and expected else expected
    if not isinstance(expected, int) or x.dim() < 2 or x.size(CHANNELS[name]) == expected or any(layer.children()):
        return None
    is_map = name == "in_features" and x.dim() == 4
    return Misfit(part, "width" if is_map else "channels", expected, x.size(CHANNELS[name]))


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


def is_known(kind: object) -> bool:
    """Whether a class is one of :data:`PACKAGES`."""
    return getattr(kind, "__module__", "").partition(".")[0] in PACKAGES
