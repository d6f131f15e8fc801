# SPDX-License-Identifier: Apache-2.0
"""Adapt a state dict of any origin to one of our backbones, or explain why that is impossible."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmrepmlp.checkpoint.names import FIRST_BLOCK, SYNONYMS, WIDTHS, architecture_of, backbone_part, form_of, rename
from mmrepmlp.checkpoint.stem import STEM, adapt_stem
from mmrepmlp.checkpoint.tiles import Tile, noted_tiles, resample_tiles
from mmrepmlp.checkpoint.unwrap import abbreviate, unwrap
from mmrepmlp.checkpoint.validate import NOT_FINITE, check_state_dict, check_values, not_finite
from mmrepmlp.reparam import fuse_state_dict, refuse_wrapped, required_tensors

State = Mapping[str, Tensor]
PER_STAGE = {"channels", "depths", "sharesets_nums", "tile_pixels", *WIDTHS}
GLOBAL_PERCEPTRON = ".fc1_fc2."
BLOCKS = {"light": ".light_repmlp.", "bottleneck": ".btnk_repmlp."}


@dataclass(frozen=True)
class Origin:
    """Facts about the state dicts of a network that the adapter needs."""

    network: str
    expected: str  # description of the names, for messages
    landmark: str  # prefix of names that every complete state dict has
    known: tuple[str, ...]  # parts of names that identify a state dict, or a part of one
    synonyms: Mapping[str, str] = field(default_factory=dict)  # from the authors' names of modules to ours
    heads: tuple[str, ...] = ("head.", "linear.")  # prefixes of the names of a classifier's head
    # Fits a state dict with its noted tiles to the sizes of a model and its state; also returns what cannot be fitted.
    resize: Callable[[nn.Module, State, State, list[Tile]], tuple[State, str | None]] = lambda *args: (args[2], None)
    # Raises a ValueError if two state dicts, the model's first, belong to different architectures.
    compare: Callable[[State, State], None] = lambda expected, state: None
    # Arguments of the constructor that a state dict in training form requires.
    training_form: Callable[[State], dict[str, object]] = lambda state: {}

    def knows(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names may belong to the network."""
        return any(part in f".{name}" for name in names for part in self.known)


def adapt_state_dict(
    model: nn.Module,
    state_dict: dict,
    prefix: str,
    metadata: Mapping,
    unexpected: list[str],
    errors: list[str],
    expected: State | None = None,
) -> None:
    """Adapt the part of a state dict that belongs to a backbone to the model.

    Tensors are renamed, and fitted to the sizes of the model if its network supports that, which is logged. Tensors of
    parts that are not built are left out. A training form is fused if the model is in deploy form.

    Args:
        model: The backbone that is about to load.
        state_dict: A state dict or, with an empty ``prefix``, a checkpoint that holds one. Changed in place.
        prefix: Prefix of the model's names in the state dict, e.g. ``"backbone."``.
        metadata: Metadata of the state dict about the backbone.
        unexpected: List that gets the names of tensors that are not finite; torch rejects them unless ``strict`` is
            False.
        errors: List that gets a message about tensors that cannot be loaded, if the rest can.
        expected: The part of the model's state dict to adapt to. Default: None, all of it.

    Raises:
        ValueError: The state dict belongs to another network or architecture, or cannot be converted to the form of the
            model.
    """
    origin: Origin = model.origin
    inside = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    if not inside:
        return
    state = rename(inside, origin.synonyms)
    if not (prefix and any(name.startswith(origin.landmark) for name in state)):  # there may be wrappers around it
        state = backbone_part(unwrap(inside), origin.network, origin.landmark, origin.heads)
        state = rename(state, origin.synonyms)
    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    state = {n: value for n, value in state.items() if n not in others and not n.startswith(model.unbuilt)}
    expected = model.state_dict() if expected is None else expected
    if not origin.knows(state) and not state.keys() <= expected.keys():
        raise ValueError(
            f"The state dict does not hold a {origin.network}: its names are {abbreviate(inside)}. Expected "
            f"{origin.expected}, with or without 'backbone.'."
        )
    refuse_wrapped(model, state)
    state, message = origin.resize(model, expected, state, noted_tiles(metadata, state_dict))
    origin.compare(expected, state)
    form, wanted = form_of(state), form_of(expected)
    if form != wanted and not state.keys() <= expected.keys():  # a part of the model's own state dict has no form
        if wanted != "deploy":
            raise ValueError(
                f"The state dict is in {form} form, the model in {wanted} form, and a conversion cannot be reversed. "
                "Build the model with deploy=True, which loads every form."
            )
        if message:
            raise ValueError(f"{message} Build the model with those of the checkpoint.")
        state = fuse(model, state, form)
    elif message:
        errors.append(f"{message} The model keeps its own.")
    bad = not_finite(expected, state)
    check_values(expected, {name: value for name, value in state.items() if name not in bad})
    unexpected.extend(f"{prefix}{name}: {NOT_FINITE}" for name in bad)
    for name in inside:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: value for name, value in {**others, **state}.items()})


def fuse(model: nn.Module, state: State, form: str) -> dict[str, Tensor]:
    """Convert a state dict in training form or injected form to deploy form, in float32 or higher precision."""
    with torch.device("meta"):
        source = model.build_training_form(**model.origin.training_form(state))
        if form == "injected":
            for block in [unit.repmlp_block for stage in source.stages for unit in stage]:
                block.switch_to_deploy()
    required = required_tensors(source, state)
    check_state_dict(required, state)
    return fuse_state_dict(source, state)


def resize_repmlpnet(model: nn.Module, expected: State, state: State, noted: list[Tile]) -> tuple[State, None]:
    """Resample ``fc3`` to other tile sizes, and adapt the stem to other image channels or patches."""
    state, tiles = resample_tiles(state, model.tiles, noted)
    if tiles and not noted:
        log_once(f"The state dict does not note tile sizes, taken as {describe(old for old, _ in tiles.values())}.")
    changes = [f"stage {i} {describe([old])} -> {describe([new])}" for i, (old, new) in tiles.items() if old != new]
    if changes:
        print_log(f"fc3 is resampled to the tile sizes of img_size={model.img_size}: {', '.join(changes)}.", "current")
    state, changes = adapt_stem(state, expected[STEM].shape)
    if changes:
        print_log(f"The stem is adapted: {', '.join(changes)}.", "current")
    return state, None


def describe(tiles: Iterable[tuple[int, int]]) -> str:
    """Format heights and widths."""
    return ", ".join(f"{h}x{w}" for h, w in tiles)


@functools.cache
def log_once(message: str) -> None:
    """Log a message once, not for each copy of a network."""
    print_log(message, "current")


def check_architecture(expected: State, state: State) -> None:
    """Raise an error that lists each difference in the architectures of two state dicts, in the stages of both."""
    wanted, loaded = architecture_of(expected), architecture_of(state)
    for key in loaded.keys() & wanted.keys() & PER_STAGE:
        loaded[key] = [have or want for have, want in zip_longest(loaded[key], wanted[key])]
    others = [key for key in wanted if key in loaded and loaded[key] != wanted[key]]
    others = [key for key in others if key not in WIDTHS] or others  # widths follow from the arch
    if others:
        found = "; ".join(f"{key} {loaded[key]} (the model: {wanted[key]})" for key in others)
        raise ValueError(
            f"The state dict belongs to another RepMLPNet: {found}. Build the model with the arch of the checkpoint, "
            "or load another one. A compressed network needs the config that mmrepmlp reparameterize writes beside it."
        )


def resize_repmlp_resnet(
    model: nn.Module, expected: State, state: State, metadata: Mapping
) -> tuple[State, str | None]:
    """Replace global perceptrons of another size, which belong to another number of partitions, by the model's own, as
    the paper does (section 4.4)."""
    for name, value in expected.items():
        if name.endswith(f"{GLOBAL_PERCEPTRON}fc1.weight") and name in state and state[name].shape != value.shape:
            loaded, wanted = (" to ".join(map(str, reversed(weight.shape))) for weight in (state[name], value))
            kept = {name: value for name, value in expected.items() if GLOBAL_PERCEPTRON in name and name in state}
            return {**state, **kept}, (
                f"The global perceptrons of the state dict belong to another image size or reduction than the model's "
                f"with img_size={model.img_size}: {name} maps {loaded} features (the model: {wanted})."
            )
    return state, None


def check_blocks(expected: State, state: State) -> None:
    """Raise an error if two state dicts of RepMLP-ResNets have different kinds of RepMLP blocks."""
    wanted, loaded = (
        next((block for block, part in BLOCKS.items() if any(part in name for name in names)), None)
        for names in (expected, state)
    )
    if loaded and wanted and loaded != wanted:
        raise ValueError(
            f"The state dict belongs to a RepMLP-ResNet with block={loaded!r}, the model has block={wanted!r}: build "
            "the model with the block of the checkpoint, or load another checkpoint."
        )


REPMLPNET = Origin(
    network="RepMLPNet",
    expected="the names of mmpretrain's RepMLPNet, or the authors' names",
    landmark=FIRST_BLOCK,
    known=(".repmlp_block.", ".patch_embed.projection."),
    synonyms=SYNONYMS,
    resize=resize_repmlpnet,
    compare=check_architecture,
    training_form=lambda state: dict(
        reparam_conv_kernels=architecture_of(state).get("reparam_conv_kernels", ()), gradient_reparam=False
    ),
)
REPMLP_RESNET = Origin(
    network="RepMLP-ResNet",
    expected="the authors' names, stage0.conv.weight and so on",
    landmark="stage0.conv.",
    known=(".stage0.", GLOBAL_PERCEPTRON),
    resize=resize_repmlp_resnet,
    compare=check_blocks,
)
REPOPT_VGG = Origin(
    network="RepOpt-VGG",
    expected="the authors' names, stage0.conv.weight and so on",
    landmark="stage0.conv.",
    known=(".stage0.", ".stage1."),
    training_form=lambda state: dict(
        form="hyper_search" if any(".scale_conv." in name for name in state) else "target"
    ),
)
