# SPDX-License-Identifier: Apache-2.0
"""Build models from configs and weights, derive deploy-form configs, and run models on images alone."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import reduce
from itertools import chain
from operator import getitem

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmrepmlp.checkpoint import abbreviate, load_weights, needed, raise_faults
from mmrepmlp.compression import PrunedModel
from mmrepmlp.models import image_channels, image_size
from mmrepmlp.reparam import convertible_modules
from mmrepmlp.verbs.config import add_import, as_list, resolve_type

# Constructor arguments that build a module in deploy form; the second is RepLKNet's.
DEPLOY_ARGUMENTS = ("deploy", "small_kernel_merged")
# Types of init_cfg that load pre-trained weights.
PRETRAINED = ("Pretrained", PretrainedInit)


def build_model(cfg: Config, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a config's model in eval mode and load a state dict, whatever prefix its names have.

    Raises:
        ValueError: The state dict does not fit the model.
    """
    model = build_untrained(cfg)
    faults = load_weights(model, state)
    unexpected = [name for name in faults["unexpected"] if name.startswith("backbone.") or ".compactor." in name]
    raise_faults({**needed(faults), "unexpected": unexpected})
    if left := list(chain(*faults.values())):  # e.g. of auxiliary heads; MMEngine ignores them too
        print_log(f"Ignored weights of parts that are only used in training: {abbreviate(left)}.", "current")
    return model.eval()


def build_fitting(cfg: Config, state: Mapping[str, Tensor]) -> tuple[nn.Module, Config]:
    """Build a config's model, or its deploy form, whichever a state dict fits; return it with its config.

    Raises:
        ValueError: The state dict fits neither form.
    """
    try:
        return build_model(cfg, state), cfg
    except ValueError:
        deployed = deploy_config(cfg)
        with suppress(ValueError):
            return build_model(deployed, state), deployed
        raise


def build_untrained(cfg: Config) -> nn.Module:
    """Build a config's model without loading any weights."""
    settings = copy.deepcopy(cfg.model)
    drop_pretrained(settings)
    if "data_preprocessor" in cfg:  # as MMEngine's runner does
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        return MODELS.build(settings)


def iter_dicts(settings: object) -> Iterator[ConfigDict]:
    """Iterate over the nested dicts of a config, the outermost first."""
    if isinstance(settings, Mapping):
        yield settings
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        for part in settings:
            yield from iter_dicts(part)


def drop_pretrained(settings: ConfigDict) -> None:
    """Remove the settings that load pre-trained weights from a model's config, in place."""
    for part in iter_dicts(settings):
        inits = as_list(part.get("init_cfg"))
        kept = [init for init in inits if not (isinstance(init, Mapping) and init.get("type") in PRETRAINED)]
        if len(kept) < len(inits):
            del part["init_cfg"]
            part.update({"init_cfg": kept} if kept else {})
        if part.get("pretrained"):
            part["pretrained"] = False if part["pretrained"] is True else None


def deploy_config(cfg: Config, model: nn.Module | None = None) -> Config:
    """Derive the config that builds a model in deploy form and loads no pre-trained weights.

    Args:
        cfg: Config of the training form; it is copied.
        model: Its model. Default: None, built from ``cfg``.
    """
    cfg = copy.deepcopy(cfg)
    add_import(cfg)
    drop_pretrained(cfg.model)
    model = model or build_untrained(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        for part in iter_dicts(cfg.model):
            kind = resolve_type(part, MODELS)
            if hasattr(kind, "switch_to_deploy"):
                part.update({name: True for name in deploy_arguments(kind)})
        pruned = resolve_type(cfg.model, MODELS) is PrunedModel  # its widths are those of the training form
    wrapped = ConfigDict(model=cfg.model)
    without_argument = [name for name, part in convertible_modules(model).items() if not deploy_arguments(type(part))]
    for path in {"model" if pruned else config_path(wrapped, f"model.{name}") for name in without_argument}:
        owner, _, name = path.rpartition(".")
        owner = reduce(getitem, owner.split("."), wrapped) if owner else wrapped
        owner[name] = ConfigDict(type="mmrepmlp.DeployForm", module=owner[name])
    cfg.model = wrapped.model
    return cfg


def config_path(settings: Mapping, module: str) -> str:
    """Return the dotted path of the innermost part of a config that builds a module."""
    path = []
    for name in module.split("."):
        settings = settings.get(name)
        if not isinstance(settings, Mapping) or "type" not in settings:
            break
        path.append(name)
    return ".".join(path)


def deploy_arguments(kind: type) -> list[str]:
    """Return the constructor arguments that build a class in deploy form."""
    return [name for name in DEPLOY_ARGUMENTS if takes_argument(kind, name)]


def takes_argument(kind: type, name: str) -> bool:
    """Whether a class accepts a constructor argument, itself or through ``**kwargs`` of a base class."""
    for base in inspect.getmro(kind):
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            if name in parameters:
                return True
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
    return False


def random_images(model: nn.Module, number: int, scale: float = 1.0) -> Tensor:
    """Draw random images (number, channels, height, width) for a model, the same in every call.

    Args:
        model: Model of any framework.
        number: Number of images.
        scale: Factor of height and width relative to the size that the model was built for. Default: 1.0.

    Returns:
        Images in float64.
    """
    shape = (number, image_channels(model), *(int(scale * side) for side in image_size(model)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ways_to_call(model: nn.Module) -> dict[str, Callable[[Tensor], object]]:
    """Return functions that call a model on images alone, those that run most of it first.

    ``"output"`` returns the raw outputs of its heads, or the outputs of a bare network; ``"features"`` returns the
    feature maps of its backbone and neck.
    """
    takes_mode = "mode" in inspect.signature(model.forward).parameters
    ways = {"output": (lambda images: model(images, mode="tensor")) if takes_mode else model}
    return ways | ({"features": model.extract_feat} if hasattr(model, "extract_feat") else {})


def call_model(model: nn.Module, images: Tensor) -> tuple[str, object] | None:
    """Run a model on normalized images (N, C, H, W) alone, in the first of the :func:`ways_to_call` it that works.

    Random numbers that the model draws from torch are the same in every call.

    Returns:
        Name of that way, and the outputs; None if the model cannot be called on images alone.
    """
    devices = [images.device] if images.is_cuda else []
    for name, call in ways_to_call(model).items():
        with torch.random.fork_rng(devices), suppress(Exception):  # a model may need more than images
            torch.manual_seed(0)
            return name, call(images)
    return None


@torch.no_grad()
def count_macs(model: nn.Module, images: Tensor | None = None) -> int:
    """Count multiply-accumulate operations of convolutions and matrix products.

    All parts of the model count that run on images alone.

    Args:
        model: The model.
        images: Images (N, C, H, W). Default: None, a single random image.
    """
    images = random_images(model, 1).float() if images is None else images
    model = copy.deepcopy(model)  # a forward pass may change it
    counts = [0]
    for call in ways_to_call(model).values():
        with FlopCounterMode(display=False) as counter, suppress(Exception):
            call(images)
            return counter.get_total_flops() // 2
        counts.append(counter.get_total_flops() // 2)
    return max(counts)
