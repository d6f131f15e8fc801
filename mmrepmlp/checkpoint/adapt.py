# SPDX-License-Identifier: Apache-2.0
"""Adapt a state dict of any origin to a RepMLPNet, or explain why that is impossible."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmrepmlp.checkpoint.folding import fold_state_dict, required_tensors
from mmrepmlp.checkpoint.names import architecture_of, backbone_part, form_of, to_native_names
from mmrepmlp.checkpoint.stem import STEM, adapt_stem
from mmrepmlp.checkpoint.tiles import resample_tiles
from mmrepmlp.checkpoint.unwrap import abbreviate, unwrap
from mmrepmlp.checkpoint.validate import check_values

PER_STAGE = {"channels", "depths", "sharesets_nums", "tile_pixels", "bottlenecks"}


def adapt_state_dict(
    model: nn.Module, state_dict: dict, prefix: str = "", expected: Mapping[str, Tensor] | None = None
) -> None:
    """Adapt the part of a state dict that belongs to a RepMLPNet to the model.

    Tensors are renamed; ``fc3`` is resampled if the tile sizes differ, and the stem adapted to other image channels or
    patches, which is logged; a training form is folded if the model is in deploy form.

    Args:
        model: The RepMLPNet that is about to load.
        state_dict: A state dict or, with an empty ``prefix``, a checkpoint that holds one. Changed in place.
        prefix: Prefix of the model's names in the state dict, e.g. ``"backbone."``.
        expected: The part of the model's state dict that belongs to the RepMLPNet. Default: all of it.

    Raises:
        ValueError: The state dict belongs to another network or architecture, is in a form that cannot be converted to
            the model's, or holds invalid values.
    """
    own = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    if not own:
        return
    state, others = split(own)
    if not (prefix and architecture_of(state)):  # there may be wrappers around it
        state, others = split(backbone_part(unwrap(own)))
    expected = model.state_dict() if expected is None else expected
    if not architecture_of(state) and not state.keys() <= expected.keys():
        raise ValueError(
            f"The state dict holds no RepMLPNet: its names are {abbreviate(own)}. Expected the names of mmpretrain's "
            "RepMLPNet, with or without 'backbone.', or the authors' names."
        )
    state = drop_unbuilt(state, len(model.stages), len(model.depths))
    state, changes = resample_tiles(state, [(block.h, block.w) for block in first_blocks(model)])
    if changes:
        print_log(f"fc3 is resampled to the tile sizes of img_size={model.img_size}: {', '.join(changes)}.", "current")
    state, changes = adapt_stem(state, expected[STEM].shape)
    if changes:
        print_log(f"The stem is adapted: {', '.join(changes)}.", "current")
    form = form_of(state)
    if form != form_of(expected) and not state.keys() <= expected.keys():  # a part of the model's own has no form
        if form_of(expected) != "deploy":
            raise ValueError(
                f"The state dict is in {form} form, the model in {form_of(expected)} form, and a conversion cannot be "
                "reversed. Build the model with deploy=True, which loads every form."
            )
        state = fold(model, state, form)
    check_architecture(expected, state)
    check_values(expected, state)
    for name in list(own):
        del state_dict[prefix + name]
    state_dict.update({prefix + name: value for name, value in {**others, **state}.items()})


def split(state: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Separate the tensors of a state dict, with our names, from anything else in it."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return to_native_names(tensors), {name: value for name, value in state.items() if name not in tensors}


def drop_unbuilt(state: dict[str, Tensor], built: int, stages: int) -> dict[str, Tensor]:
    """Leave out what belongs to stages that the model, with its ``out_indices``, does not have."""
    if built == stages:
        return state
    unbuilt = [prefix for i in range(built, stages) for prefix in (f"stages.{i}.", f"downsample_layers.{i - 1}.")]
    return {name: value for name, value in state.items() if not name.startswith((*unbuilt, "final_norm."))}


def first_blocks(model: nn.Module) -> list[nn.Module]:
    """The first RepMLPBlock of each stage."""
    return [stage[0].repmlp_block for stage in model.stages]


def fold(model: nn.Module, state: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """Convert a state dict in a model's training form or injected form to its deploy form, at least in float32.

    Raises:
        ValueError: The state dict does not fit the model.
    """
    source = build_form(model, form, architecture_of(state).get("reparam_conv_kernels", ()))
    check_architecture(required_tensors(source, state), state)
    return fold_state_dict(source, state)


def build_form(model: nn.Module, form: str, reparam_conv_kernels: Sequence[int]) -> nn.Module:
    """Build a RepMLPNet like a given one in training form or injected form, on the meta device."""
    with torch.device("meta"):
        source = model.build_training_form(reparam_conv_kernels=reparam_conv_kernels)
        if form == "injected":
            for unit in (unit for stage in source.stages for unit in stage):
                unit.repmlp_block.switch_to_deploy()
    return source


def check_architecture(expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Compare the architectures of two state dicts, in the stages that both have.

    Raises:
        ValueError: They differ; the message lists each difference.
    """
    wanted, given = architecture_of(expected), architecture_of(state)
    for key in given.keys() & PER_STAGE:
        given[key] = [have or want for have, want in zip_longest(given[key], wanted[key])]
    differences = [
        f"{key} {given[key]} (the model: {wanted[key]})" for key in wanted if key in given and given[key] != wanted[key]
    ]
    if not differences:
        return
    advice = "Build the model with the arch of the checkpoint, or load another checkpoint."
    raise ValueError(f"The state dict belongs to another RepMLPNet: {'; '.join(differences)}. {advice}")
