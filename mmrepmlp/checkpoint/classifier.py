# SPDX-License-Identifier: Apache-2.0
"""Names of whole models: prefixes of wrappers, and the names of the authors' classifiers, which include their head,
while OpenMMLab's consist of a backbone and a head."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress

from mmengine.logging import print_log
from torch import Tensor

from .unwrap import abbreviate

HEAD = "head.fc."  # mmpretrain's
OFFICIAL_HEADS = ("head.", "linear.")  # of RepMLPNet, and of the authors' other networks


def fit_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> Mapping[str, Tensor]:
    """Rename the tensors of a state dict to those of the model that is to load it.

    A prefix of all names of the model is removed, such as ``model.``, ``module.`` or ``student.``, which Lightning,
    distributed wrappers, distillation and the like add, and tensors without it are left out. The authors' classifiers
    get the names of OpenMMLab's.

    Args:
        state: The state dict.
        expected: Names of the model's tensors.

    Returns:
        The state dict with the new names.

    Raises:
        ValueError: The state dict holds the model's weights several times.
    """
    expected = set(expected)
    prefix = find_prefix(state, expected)
    if prefix is None and f"{HEAD}weight" in expected:
        with suppress(ValueError):  # other networks may have several layers of such names
            prefix = find_prefix(state, {name.removeprefix("backbone.") for name in expected})
    if prefix:
        print_log(f"The weights under {prefix!r} are loaded, without this prefix.", "current")
        inside = OrderedDict((n.removeprefix(prefix), value) for n, value in state.items() if n.startswith(prefix))
        versions = getattr(state, "_metadata", {}).items()  # of modules, whose names do not end in a dot
        kept = {f"{n}.".removeprefix(prefix).rstrip("."): v for n, v in versions if f"{n}.".startswith(prefix)}
        inside._metadata = OrderedDict(kept)
        state = inside
    return to_classifier_names(state, expected)


def find_prefix(names: Iterable[str], expected: set[str]) -> str | None:
    """Find the prefix of a model's names in a state dict: the one with most of them, empty if in doubt, None if the
    state dict has none of them."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        found.update(name.removesuffix(end) for end in ends if end in expected)
    best = [prefix for prefix, number in found.items() if number == max(found.values())]
    if len(best) > 1 and "" not in best:
        raise ValueError(
            f"The checkpoint holds the model's weights several times, under {abbreviate(map(repr, best))}. Save the "
            "wanted ones to a separate file."
        )
    return None if not best else "" if "" in best else best[0]


def to_classifier_names(state: Mapping[str, Tensor], expected: set[str]) -> Mapping[str, Tensor]:
    """Rename the tensors of a network that includes its head, as the authors' classifiers do, to those of OpenMMLab's
    classifier, ``backbone.`` and ``head.fc.``; other state dicts are unchanged."""
    if f"{HEAD}weight" not in expected or any(name.startswith("backbone.") for name in state):
        return state
    heads = {f"{head}{kind}": f"{HEAD}{kind}" for head in OFFICIAL_HEADS for kind in ("weight", "bias")}
    return {name if name in expected else heads.get(name, f"backbone.{name}"): value for name, value in state.items()}
