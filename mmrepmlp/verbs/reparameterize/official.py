# SPDX-License-Identifier: Apache-2.0
"""Convert classifier checkpoints between the authors' names and ours."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmrepmlp.checkpoint import (
    architecture_of,
    backbone_part,
    build_form,
    check_overwrite,
    check_state_dict,
    form_of,
    load_from_local,
    save_checkpoint,
    to_native_names,
    to_official_names,
    unwrap,
)
from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.repmlpnet.network import ARCHITECTURES, KEYS
from mmrepmlp.verbs.reparameterize.family import RecognizedRelative, recognize, rename_classifier
from mmrepmlp.version import __version__

HEAD = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}  # the authors' names: mmpretrain's
FORMS = {
    "training": "training form",
    "injected": "the form that the authors' and mmpretrain's conversion produces",
    "deploy": "deploy form",
}


@dataclass
class RecognizedNetwork:
    """Description of a RepMLPNet, inferred from the shapes of its tensors.

    Attributes:
        arch: Letter of the architecture (T, B, D, L), or a dict of its settings.
        img_size: Side in pixels of the image that makes one tile.
        form: ``"training"``, ``"injected"`` or ``"deploy"``.
        num_classes: Number of classes of the head; None without a head.
    """

    arch: str | dict
    img_size: int
    form: str
    num_classes: int | None

    def __str__(self) -> str:
        name = f"RepMLPNet-{self.arch}{self.img_size}" if isinstance(self.arch, str) else f"RepMLPNet of {self.arch}"
        head = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        return f"{name}, {head}, in {FORMS[self.form]}"


def official_to_mmrepmlp(
    checkpoint: str | Path, out: str | Path, ema: bool = False, allow_unsafe: bool = False, overwrite: bool = False
) -> RecognizedNetwork | RecognizedRelative:
    """Convert a classifier checkpoint of the authors, or of mmpretrain, to the names that our configs load.

    Takes RepMLPNet, RepMLP-ResNet and RepOpt-VGG. What the network is, is inferred from names and shapes. The form is
    kept: a backbone with ``deploy=True`` folds what it loads, :func:`mmrepmlp.apis.reparameterize_checkpoint` converts
    the training form.

    Args:
        checkpoint: The file to read: a plain state dict or one under ``state_dict``, ``model`` or ``ema``.
        out: The file to write, ``.pth`` or ``.safetensors``.
        ema: Whether to use the averaged weights if a file has both. Default: False.
        allow_unsafe: Whether to execute code in the file. Default: False.
        overwrite: Whether an existing file may be replaced. Default: False.

    Returns:
        Description of the network.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        CheckpointError: The file cannot be read, or contains code.
        ValueError: It holds no such classifier, or tensors are missing, unexpected or invalid.
    """
    check_overwrite(out, overwrite=overwrite)
    content = unwrap(load_from_local(checkpoint, allow_unsafe=allow_unsafe), ema)
    if recognize(content):
        relative, state = rename_classifier(content, official=False)
        save_checkpoint({"meta": dict(mmrepmlp_version=__version__), "state_dict": state}, out)
        return relative
    network, backbone, head = split_classifier(checkpoint, content)
    state = {f"backbone.{name}": value for name, value in backbone.items()} | head
    meta = dict(mmrepmlp_version=__version__, arch=network.arch, img_size=network.img_size, form=network.form)
    save_checkpoint({"meta": meta, "state_dict": state}, out)
    return network


def mmrepmlp_to_official(
    checkpoint: str | Path, out: str | Path, ema: bool = False, allow_unsafe: bool = False, overwrite: bool = False
) -> RecognizedNetwork | RecognizedRelative:
    """Convert a classifier checkpoint of ours, or of mmpretrain, to a plain state dict with the authors' names.

    Takes the arguments and raises the errors of :func:`official_to_mmrepmlp`.

    Raises:
        ValueError: The checkpoint is in our deploy form, which folds batch norms that the authors' network needs.
    """
    check_overwrite(out, overwrite=overwrite)
    content = unwrap(load_from_local(checkpoint, allow_unsafe=allow_unsafe), ema)
    if recognize(content):
        relative, state = rename_classifier(content, official=True)
        save_checkpoint({"state_dict": state} if Path(out).suffix == ".safetensors" else state, out)
        return relative
    network, backbone, head = split_classifier(checkpoint, content)
    if network.form == "deploy":
        raise ValueError(
            f"{checkpoint} is in deploy form, in which batch norms are folded that the authors' network needs. "
            "Convert the checkpoint in training form, then apply the authors' own conversion to deploy form."
        )
    theirs = {ours: name for name, ours in HEAD.items()}
    state = to_official_names(backbone) | {theirs[name]: value for name, value in head.items()}
    save_checkpoint({"state_dict": state} if Path(out).suffix == ".safetensors" else state, out)
    return network


def split_classifier(
    checkpoint: str | Path, state: dict[str, Tensor]
) -> tuple[RecognizedNetwork, dict[str, Tensor], dict[str, Tensor]]:
    """Take a RepMLPNet classifier's state dict apart.

    Args:
        checkpoint: The file that it comes from.
        state: The state dict, with the authors' names or ours.

    Returns:
        Description of the network; the tensors of the backbone and of the head, with our names.
    """
    backbone = to_native_names(backbone_part(state))
    head = {HEAD.get(name, name): value for name, value in state.items() if name.startswith("head.")}
    return infer_network(checkpoint, backbone, head), backbone, head


def infer_network(checkpoint: str | Path, backbone: dict[str, Tensor], head: dict[str, Tensor]) -> RecognizedNetwork:
    """Infer a network from the shapes of its tensors, and check that it is complete.

    Raises:
        ValueError: It is not a RepMLPNet, or incomplete.
    """
    found, form = architecture_of(backbone), form_of(backbone)
    needed = (*KEYS, "tile_pixels", "bottlenecks", "patch_size", "in_channels")
    if any(key not in found for key in needed):
        raise ValueError(f"{checkpoint} holds no RepMLPNet, or an incomplete one: {describe_missing(found, needed)}.")
    settings = {key: found[key] for key in KEYS}
    names = [letters[0].upper() for letters, arch in ARCHITECTURES.items() if arch == settings]
    tile, patch = math.isqrt(found["tile_pixels"][0]), found["patch_size"][0]
    model = RepMLPNet(
        arch=settings,
        img_size=tile * patch,
        in_channels=found["in_channels"],
        patch_size=tuple(found["patch_size"]),
        globalperceptron_ratio=found["channels"][0] // found["bottlenecks"][0],
        deploy=True,
    )
    kernels = found.get("reparam_conv_kernels", ())
    expected = (model if form == "deploy" else build_form(model, form, reparam_conv_kernels=kernels)).state_dict()
    fc = head.get("head.fc.weight")
    if fc is not None:
        expected |= {
            "head.fc.weight": fc.new_empty(len(fc), found["channels"][-1]),
            "head.fc.bias": fc.new_empty(len(fc)),
        }
    check_state_dict(expected, backbone | head)
    return RecognizedNetwork(names[0] if names else settings, tile * patch, form, None if fc is None else len(fc))


def describe_missing(found: dict, needed: tuple[str, ...]) -> str:
    """List what cannot be inferred from the tensors of a state dict."""
    return f"{', '.join(key for key in needed if key not in found)} cannot be inferred from its tensors"
