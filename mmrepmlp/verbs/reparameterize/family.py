# SPDX-License-Identifier: Apache-2.0
"""Classifier checkpoints of the authors' other networks, whose backbones have the authors' names here as well."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmrepmlp.checkpoint import abbreviate, check_values

# Networks by the part of a name that no other has.
NETWORKS = {
    ".light_repmlp.": "RepMLP-ResNet with light blocks",
    ".btnk_repmlp.": "RepMLP-ResNet with bottleneck blocks",
    "stage1.0.scale_conv.": "RepOpt-VGG, hyper-search",
    "stage1.0.conv.weight": "RepOpt-VGG",
}
HEADS = {"linear.": "head.fc."}  # the authors' name: mmpretrain's


@dataclass
class RecognizedRelative:
    """Description of a network of the family.

    Attributes:
        network: Its name.
        form: ``"training"`` or ``"deploy"``.
        num_classes: Number of classes of the head; None without a head.
    """

    network: str
    form: str
    num_classes: int | None

    def __str__(self) -> str:
        head = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        return f"{self.network}, {head}, in {self.form} form"


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The name of the network that a state dict belongs to, with the authors' names or ours; None for others."""
    own = "\n".join(name.removeprefix("backbone.") for name in state)
    if "stage0.conv.weight" not in own:
        return None
    return next((network for part, network in NETWORKS.items() if part in own), None)


def rename_classifier(state: Mapping[str, Tensor], official: bool) -> tuple[RecognizedRelative, dict[str, Tensor]]:
    """Rename a classifier's tensors.

    Args:
        state: The state dict, with the authors' names or ours.
        official: Whether to the authors' names; otherwise to those of mmpretrain's classifier.

    Raises:
        ValueError: A tensor is neither the backbone's nor the head's, or has invalid values.
    """
    prefix, heads = ("", {ours: theirs for theirs, ours in HEADS.items()}) if official else ("backbone.", HEADS)
    renamed, unknown = {}, []
    for name, value in state.items():
        own = name.removeprefix("backbone.")
        if own.startswith("stage"):
            renamed[prefix + own] = value
        elif own.startswith((*heads, *heads.values())):
            before = next((head for head in heads if own.startswith(head)), "")
            renamed[heads.get(before, "") + own.removeprefix(before)] = value
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{recognize(state)}: {abbreviate(unknown)} belong to neither backbone nor head.")
    check_values(renamed, renamed)
    weight = next((value for name, value in renamed.items() if name in ("linear.weight", "head.fc.weight")), None)
    form = "training" if any(name.endswith(".running_var") for name in renamed) else "deploy"
    return RecognizedRelative(recognize(state), form, None if weight is None else len(weight)), renamed
