# SPDX-License-Identifier: Apache-2.0
"""Names of whole models: what wrappers put in front of them, and those of the authors' classifiers, which have a head
of their own, while OpenMMLab's are put together."""

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

    Removed is what Lightning, distributed wrappers, distillation and the like put in front of all names of a model,
    such as ``model.``, ``module.`` or ``student.``, with the tensors beside it; the authors' classifiers get the names
    of OpenMMLab's.
    """
    expected = set(expected)
    prefix = find_prefix(state, expected)
    if prefix is None and f"{HEAD}weight" in expected:
        with suppress(ValueError):  # other networks have layers of such names several times
            prefix = find_prefix(state, {name.removeprefix("backbone.") for name in expected})
    if prefix:
        print_log(f"The weights under {prefix!r} are loaded, without this prefix.", "current")
        inside = OrderedDict((n.removeprefix(prefix), value) for n, value in state.items() if n.startswith(prefix))
        versions = getattr(state, "_metadata", {}).items()  # of modules, whose names end in no dot
        kept = {f"{n}.".removeprefix(prefix).rstrip("."): v for n, v in versions if f"{n}.".startswith(prefix)}
        inside._metadata = OrderedDict(kept)
        state = inside
    return to_classifier_names(state, expected)


def find_prefix(names: Iterable[str], expected: set[str]) -> str | None:
    """What is in front of the names of a model in those of a state dict: that with most of them, empty if in doubt,
    None if none of them is there."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        found.update(name.removesuffix(end) for end in ends if end in expected)
    best = [prefix for prefix, number in found.items() if number == max(found.values())]
    if len(best) > 1 and "" not in best:
        raise ValueError(
            f"The checkpoint holds the model's weights several times, under {abbreviate(map(repr, best))}. Save those "
            "to load in a file of their own."
        )
    return None if not best else "" if "" in best else best[0]


def to_classifier_names(state: Mapping[str, Tensor], expected: set[str]) -> Mapping[str, Tensor]:
    """Rename the tensors of a network that is a classifier by itself, as the authors' are, to those of OpenMMLab's
    classifier: ``backbone.`` in front, and ``head.fc.``. What is not such a network is unchanged."""
    if f"{HEAD}weight" not in expected or any(name.startswith("backbone.") for name in state):
        return state
    heads = {f"{head}{kind}": f"{HEAD}{kind}" for head in OFFICIAL_HEADS for kind in ("weight", "bias")}
    return {name if name in expected else heads.get(name, f"backbone.{name}"): value for name, value in state.items()}
