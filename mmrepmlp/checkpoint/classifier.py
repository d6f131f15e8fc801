# SPDX-License-Identifier: Apache-2.0
"""Names of whole classifiers: the authors' networks have a head of their own, OpenMMLab's are put together."""

from collections.abc import Iterable, Mapping

from torch import Tensor

HEAD = "head.fc."  # mmpretrain's
OFFICIAL_HEADS = ("head.", "linear.")  # of RepMLPNet, and of the authors' other networks


def to_classifier_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> Mapping[str, Tensor]:
    """Rename the tensors of a network that is a classifier by itself, as the authors' are, to those of OpenMMLab's
    classifier: ``backbone.`` in front, and ``head.fc.``. What is not such a network is unchanged.

    Args:
        state: A state dict.
        expected: The names of the model that is to load it.
    """
    expected = set(expected)
    if f"{HEAD}weight" not in expected or any(name.startswith("backbone.") for name in state):
        return state
    heads = {f"{head}{kind}": f"{HEAD}{kind}" for head in OFFICIAL_HEADS for kind in ("weight", "bias")}
    return {name if name in expected else heads.get(name, f"backbone.{name}"): value for name, value in state.items()}
