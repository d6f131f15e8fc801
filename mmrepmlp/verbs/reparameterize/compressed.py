# SPDX-License-Identifier: Apache-2.0
"""Convert checkpoints of compression training: derive the config of the narrower model, and verify that model."""

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch import Tensor, nn

import mmrepmlp.compression as compression
from mmrepmlp.checkpoint import load_from_local, unwrap
from mmrepmlp.compression.compactor import compactors_in
from mmrepmlp.compression.compress import Compressed
from mmrepmlp.compression.reduce import changed_widths, plain_layer
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from mmrepmlp.reparam import TOLERANCE, Difference, compare_outputs
from mmrepmlp.verbs.benchmark.measure import interleave
from mmrepmlp.verbs.config import as_list, resolve_type
from mmrepmlp.verbs.model import call_model, config_path, random_images

REPEATS = 15  # timed calls of each network
UNFINISHED = 1e-3  # allowed change of outputs by unfinished compression, relative to an output's largest value


def compressed_config(cfg: Config, compressed: Compressed) -> Config:
    """Derive the config that builds the narrower model, and whose training does not compress.

    The widths of a RepMLPNet become its arguments, those of other layers arguments of a ``PrunedModel``.
    """
    cfg = copy.deepcopy(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        cfg.model = without_compactors(cfg.model)
        kept = [hook for hook in as_list(cfg.get("custom_hooks")) if not compresses(resolve_type(hook, HOOKS))]
        cfg.update({"custom_hooks": kept} if "custom_hooks" in cfg else {})
    widths = changed_widths(compressed.model, compressed.groups)
    for name, network in compressed.model.named_modules():
        if isinstance(network, RepMLPNet):
            path = config_path(ConfigDict(model=cfg.model), f"model.{name}".rstrip("."))
            part = cfg
            for key in path.split("."):
                part = part[key]
            part.update(network.widths)
            widths = {
                layer: sizes for layer, sizes in widths.items() if not f"{layer}.".startswith(f"{name}.".lstrip("."))
            }
    if widths:
        # Parts and settings of the model stay at the top level, where frameworks and users look for them.
        inner = ConfigDict({key: cfg.model[key] for key in ("type", "model", "widths") if key in cfg.model})
        rest = {key: value for key, value in cfg.model.items() if key not in inner}
        cfg.model = ConfigDict(type="mmrepmlp.PrunedModel", model=inner, widths=widths, **rest)
    return cfg


def without_compactors(settings: ConfigDict) -> ConfigDict:
    """Remove the parts of a model's config that add compactors, at any depth."""
    if isinstance(settings, dict):
        if resolve_type(settings, MODELS) is compression.ResRep:
            rest = {key: value for key, value in settings.items() if key not in ("type", "model", "layers")}
            return without_compactors(ConfigDict({**rest, **settings["model"]}))
        return ConfigDict({key: without_compactors(value) for key, value in settings.items()})
    return [without_compactors(part) for part in settings] if isinstance(settings, list) else settings


def kept_by_hooks(content: Mapping) -> Mapping[str, dict]:
    """Return the state that the hooks of compression training saved in a checkpoint; empty if there is none."""
    kept = content.get("compression")
    return kept if isinstance(kept, Mapping) else {}


def read_finished(
    config: str | Path, checkpoint: str | Path, ema: bool = False, allow_unsafe: bool = False
) -> tuple[dict, dict[str, Tensor]]:
    """Read a checkpoint to use as it is, without conversion; return its content and its state dict.

    Raises:
        MMRepMLPError: Compression training left filters that a conversion has to remove.
    """
    content = load_from_local(checkpoint, allow_unsafe=allow_unsafe)
    state, kept = unwrap(content, ema), kept_by_hooks(content)
    left = None
    if any(name.endswith(".compactor.mask") for name in state):
        left = "its compactors"
    elif any(len(set(numbers)) < len(numbers) for numbers in kept.get("CSGDHook", {}).get("clusters", {}).values()):
        left = "all filters of its clusters"
    elif not all(map(all, kept.get("AOFPHook", {}).get("masks", {}).values())):
        left = "the filters that are masked"
    if left:
        raise MMRepMLPError(
            f"{checkpoint} comes from compression training and still has {left}: the network would be as large as "
            f"before. Run mmrepmlp reparameterize {config} {checkpoint} small.pth, and use the files it writes."
        )
    return content, state


def compresses(kind: object) -> bool:
    """Whether a class is a hook that compresses."""
    return isinstance(kind, type) and issubclass(kind, compression.GradientHook)


@torch.no_grad()
def compare_compressed(model: nn.Module, compressed: Compressed) -> list[Difference]:
    """Compare a model with its compressed version, on random images in float64.

    Returns:
        The change of outputs when channels are removed, which must be exact; and before that, when the compression is
        completed that training may have left short of the method's threshold.

    Raises:
        MMRepMLPError: The model cannot be called on images alone.
    """
    before, finished, after = (copy.deepcopy(part).double() for part in (model, compressed.finished, compressed.model))
    images = random_images(model, 2)
    outputs = [call_model(part, images) for part in (before, finished, after)]
    if any(output is None for output in outputs):
        raise MMRepMLPError("The model cannot be called on images alone, so that its compression cannot be verified.")
    found = []
    for name, expected, actual, tolerance in (
        ("removal of channels", outputs[1][1], outputs[2][1], TOLERANCE[torch.float64]),
        ("compression that training left unfinished", outputs[0][1], outputs[1][1], UNFINISHED),
    ):
        differences = compare_outputs(expected, actual, torch.float64, tolerance)
        worst = max(differences, key=lambda difference: difference.relative)
        found.append(replace(worst, output=name))
    return found


def compressed_channels(compressed: Compressed) -> dict[str, tuple[int, int]]:
    """Return the number of output channels of each layer, before and after, by name."""
    return {
        name: (group.channels, len(plain_layer(compressed.model, name).weight))
        for name, group in compressed.groups.items()
    }


def original_model(model: nn.Module) -> nn.Module:
    """Return a model without the compactors that compression training added."""
    if not compactors_in(model):
        return model
    plain = copy.deepcopy(model)
    compression.remove_compactors(plain)
    return plain


@torch.no_grad()
def time_calls(models: Sequence[nn.Module]) -> tuple[float, ...]:
    """Return the median milliseconds of interleaved calls of each model on one image."""
    images = random_images(models[0], 1).float()
    calls = {str(i): partial(call_model, model, images) for i, model in enumerate(models)}
    return tuple(1e3 * statistics.median(seconds) for seconds in interleave(calls, REPEATS, "one image").values())
