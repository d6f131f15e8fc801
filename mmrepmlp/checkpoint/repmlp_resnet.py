# SPDX-License-Identifier: Apache-2.0
"""Adapt a state dict of any origin to a RepMLPResNet, or explain why that is impossible."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from mmrepmlp.checkpoint.folding import fold_state_dict, required_tensors
from mmrepmlp.checkpoint.unwrap import abbreviate, unwrap
from mmrepmlp.checkpoint.validate import check_values

HEADS = ("linear.", "head.")  # the authors' and mmpretrain's
BLOCKS = {"light": ".light_repmlp.", "bottleneck": ".btnk_repmlp."}
GLOBAL_PERCEPTRON = ".fc1_fc2."


def adapt_repmlp_resnet(model: nn.Module, state_dict: dict, prefix: str, errors: list[str]) -> None:
    """Adapt the part of a state dict that belongs to a RepMLPResNet to the model.

    A training form is folded if the model is in deploy form. Global perceptrons of another size, which belong to
    another number of partitions, cannot be converted: a model in training form keeps its own, as the paper does
    (section 4.4), with an error that torch raises and that MMEngine, loading pre-trained weights, logs.

    Args:
        model: The RepMLPResNet that is about to load.
        state_dict: A state dict or, with an empty ``prefix``, a whole model's. Changed in place.
        prefix: Prefix of the model's names in the state dict, e.g. ``"backbone."``.
        errors: Gets a message about what cannot be loaded.

    Raises:
        ValueError: The state dict belongs to another network, is in a form that cannot be converted to the model's, or
            holds invalid values.
    """
    own = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    if not own:
        return
    state = drop_unbuilt(own if prefix else backbone_part(unwrap(own)), len(model.stages), len(model.depths))
    expected = model.state_dict()
    if state.keys() <= expected.keys():  # in the model's form, or a part of it
        state, message = keep_global_perceptrons(expected, state, model.img_size)
        errors.extend([message] if message else [])
    else:
        check_network(expected, state)
        if form_of(state) != form_of(expected):
            state = fold(model, state)
    check_values(expected, state)
    for name in own:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: value for name, value in state.items()})


def backbone_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the backbone's tensors from a whole model's state dict, under the backbone's own names."""
    inside = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    return inside or {name: value for name, value in state.items() if not name.startswith(HEADS)}


def drop_unbuilt(state: Mapping[str, Tensor], built: int, stages: int) -> dict[str, Tensor]:
    """Leave out what belongs to stages that the model, with its ``out_indices``, does not have."""
    unbuilt = tuple(f"stage{i + 1}." for i in range(built, stages))
    return {name: value for name, value in state.items() if not name.startswith(unbuilt)}


def form_of(names: Iterable[str]) -> str:
    """Infer a network's form from the names of its tensors: ``"training"`` or ``"deploy"``."""
    return "training" if any(name.endswith(".running_mean") for name in names) else "deploy"


def block_of(names: Iterable[str]) -> str | None:
    """Infer the kind of a network's RepMLP blocks from the names of its tensors; None if there are none."""
    names = list(names)
    return next((block for block, part in BLOCKS.items() if any(part in name for name in names)), None)


def check_network(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Compare the networks that two state dicts belong to.

    Raises:
        ValueError: They are different ones.
    """
    if not any(name.startswith("stage0.") or GLOBAL_PERCEPTRON in name for name in state):
        raise ValueError(
            f"The state dict holds no RepMLP-ResNet: its names are {abbreviate(state)}. Expected the authors' names, "
            "stage0.conv.weight and so on, with or without 'backbone.'."
        )
    given, wanted = block_of(state), block_of(expected)
    if given and wanted and given != wanted:
        raise ValueError(
            f"The state dict belongs to a RepMLP-ResNet with block={given!r}, the model has block={wanted!r}: build "
            "the model with the block of the checkpoint, or load another checkpoint."
        )


def keep_global_perceptrons(
    expected: Mapping[str, Tensor], state: dict[str, Tensor], img_size: tuple[int, int]
) -> tuple[dict[str, Tensor], str | None]:
    """Replace global perceptrons of another size by the model's own, and say so.

    Returns:
        The state dict, and the message; None if all have the size of the model's.
    """
    message = describe_global_perceptrons(expected, state, img_size)
    if message is None:
        return state, None
    own = {name: value for name, value in expected.items() if GLOBAL_PERCEPTRON in name and name in state}
    return {**state, **own}, f"{message} The model keeps its own."


def describe_global_perceptrons(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], img_size: tuple[int, int]
) -> str | None:
    """Explain how global perceptrons differ in size; None if they do not."""
    for name, value in expected.items():
        if name.endswith(f"{GLOBAL_PERCEPTRON}fc1.weight") and name in state and state[name].shape != value.shape:
            given, wanted = (" to ".join(map(str, reversed(weight.shape))) for weight in (state[name], value))
            return (
                f"The global perceptrons of the state dict belong to another image size or reduction than the model's "
                f"with img_size={img_size}: {name} maps {given} features (the model: {wanted})."
            )
    return None


def fold(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict in a model's training form to its deploy form, at least in float32.

    Raises:
        ValueError: The model is in training form itself, or the state dict does not fit.
    """
    if not model.deploy:
        raise ValueError(
            "The state dict is in deploy form, the model in training form, and a conversion cannot be reversed. Build "
            "the model with deploy=True, which loads both forms."
        )
    source = model.build_training_form()
    message = describe_global_perceptrons(required_tensors(source, state), state, model.img_size)
    if message:
        raise ValueError(f"{message} Build the model with those of the checkpoint.")
    return fold_state_dict(source, state)
