# SPDX-License-Identifier: Apache-2.0
"""Verification of a conversion: each converted module on the inputs that it gets in a real pass, all else bit for bit.

A model is what its modules make of each other's outputs. Where every converted module computes what it did before, and
no other tensor changed, the model does, whatever its heads are and however they are called.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mmrepmlp.reparam import Difference, compare_outputs, convertible_modules, named_tensors
from mmrepmlp.verbs.explain_data import first_line
from mmrepmlp.verbs.model import call_model, random_images

SCALES = (1.0, 1.3)  # image sizes over the model's: a whole number of tiles, and none
CALLS = 20  # of a module that are compared in one pass


@dataclass
class Forms:
    """A model before and after its conversion, and how much they may differ."""

    before: nn.Module
    after: nn.Module
    dtype: torch.dtype  # of the converted weights, to report
    tolerance: float  # relative to an output's largest value

    def call(self, model: nn.Module, name: str, inputs: tuple[tuple, dict]) -> object:
        """Call a module of either form on copies of inputs, in the precision in which both compute."""
        like = next(self.before.parameters())
        args, kwargs = tree_map_only(
            Tensor, lambda x: x.to(like if x.is_floating_point() else like.device, copy=True), inputs
        )
        return model.get_submodule(name)(*args, **kwargs)


class Verification:
    """Comparison of the modules that a conversion changes.

    Args:
        model: The model in training form.
        forms: What to compare, such as the conversion in float64, where nothing but the algebra counts, and the file
            as it was written.

    Attributes:
        names: Names of the modules that are converted; of a shared one, the first.
        differences: How far outputs moved in any call, the largest of each output in each precision.
    """

    def __init__(self, model: nn.Module, forms: Iterable[Forms]) -> None:
        self.model, self.forms = copy.deepcopy(model), list(forms)  # hooks and passes are to leave no trace
        self.names = list(convertible_modules(model))
        named = list(model.named_modules(remove_duplicate=False))
        self.aliases = {name: [n for n, m in named if m is model.get_submodule(name)] for name in self.names}
        self.found: dict[tuple, Difference] = {}
        self.first_samples: dict[tuple, Tensor] = {}
        self.compared: set[str] = set()
        self.varied: set[str] = set()
        self.errors: dict[str, str] = {}

    @property
    def differences(self) -> list[Difference]:
        return [
            difference for form in self.forms for (dtype, _), difference in self.found.items() if dtype is form.dtype
        ]

    def all_names(self) -> list[str]:
        """All names of the converted modules; a shared one has several."""
        return [alias for aliases in self.aliases.values() for alias in aliases]

    def unproven(self) -> dict[str, str]:
        """The converted modules that nothing was shown of, and why."""
        reasons = {}
        for name in self.names:
            if name not in self.compared:
                reasons[name] = self.errors.get(name, "no pass reached it")
            elif name not in self.varied:
                reasons[name] = "it gives the same for all images"
        return reasons

    @torch.no_grad()
    def run_on_random_images(self) -> None:
        """Run the model, up to the raw outputs of its heads where that is possible, and compare what it calls.

        Modules that this does not show, such as those of a teacher, are reached from the modules around them, the
        outermost that can be called.
        """
        for scale in SCALES:
            images = random_images(self.model, 2, scale).float()
            with self.watch(self.model):
                outputs = call_model(self.model, images)
            if outputs and "" not in self.names:
                self.compare_whole(outputs, images)
        for name in self.unproven():
            path = name.split(".")
            for owner in (".".join(path[: end + 1]) for end in range(len(path))):
                if name in self.unproven():
                    part = self.model.get_submodule(owner)
                    for scale in SCALES:
                        with self.watch(self.model):
                            call_model(part, random_images(part, 2, scale).float())

    @contextmanager
    def watch(self, model: nn.Module, names: Iterable[str] | None = None) -> Iterator[None]:
        """Compare the converted modules, or some of them by name, on what they are called with in a model in training
        form, or in a copy of it."""
        calls = Counter()

        def compare(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
            if calls[name] < CALLS:
                calls[name] += 1
                self.compare(name, (args, kwargs))

        with ExitStack() as hooks:
            for name in self.names if names is None else names:
                hook = partial(compare, name)
                hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def compare(self, name: str, inputs: tuple[tuple, dict]) -> None:
        """Compare both forms of a module on one input."""
        for forms in self.forms:
            try:
                expected = forms.call(forms.before, name, inputs)
            except Exception as error:  # the precision or the size may not do
                self.errors[name] = first_line(error)[:200]
                return
            self.notice_samples(name, expected)
            for alias in self.aliases[name]:
                actual = None
                with suppress(Exception):
                    actual = forms.call(forms.after, alias, inputs)
                self.keep(compare_named(alias or "model", expected, actual, forms))
        self.compared.add(name)

    def compare_whole(self, outputs: tuple[str, object], images: Tensor) -> None:
        """Compare the outputs of the whole model as well.

        Functions of equal inputs, they differ by what heads make of rounding, a sorting for example. That is no reason
        to refuse; a model that cannot be called any more is one.
        """
        way, expected = outputs
        actual = call_model(self.forms[-1].after, images)
        still_called = actual is not None and actual[0] == way
        differences = compare_named(
            f"whole model, {way}", expected, actual[1] if still_called else None, self.forms[-1]
        )
        self.keep([replace(difference, required=not still_called) for difference in differences])

    def notice_samples(self, name: str, outputs: object) -> None:
        """Note whether the outputs of a module differ between two samples, in any call."""
        for path, output in named_tensors(outputs):
            if name not in self.varied and output.dim() and len(output):
                first = self.first_samples.setdefault((name, path, output.shape[1:]), output[0].clone())
                if not (output == first).all():
                    self.varied.add(name)

    def keep(self, differences: Iterable[Difference]) -> None:
        """Keep the larger of each difference and what is known of its output; nan is the largest."""
        for difference in differences:
            key = difference.dtype, difference.output
            if key not in self.found or not difference.relative <= self.found[key].relative:
                self.found[key] = difference


def compare_named(name: str, expected: object, actual: object, forms: Forms) -> list[Difference]:
    """Compare outputs, and name them after what gives them."""
    differences = compare_outputs({name: expected}, {name: actual}, forms.dtype, forms.tolerance)
    return [replace(d, output=d.output.removeprefix("output.")) for d in differences]


def changed_tensors(before: nn.Module, after: nn.Module, converted: Iterable[str], dtype: torch.dtype) -> list[str]:
    """The tensors outside of the converted modules that are not bit for bit the same, but for a cast."""
    names = list(converted)
    expected, actual = (tensors_outside(model, names) for model in (before, after))
    return [name for name in expected | actual if not same_tensor(expected.get(name), actual.get(name), dtype)]


def tensors_outside(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a state dict that are in none of some modules, whatever their names are in it."""
    inside = {id(tensor) for name in names for tensor in model.get_submodule(name).state_dict(keep_vars=True).values()}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in inside}


def same_tensor(expected: Tensor | None, actual: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same bit for bit, but for a cast of the second."""
    if expected is None or actual is None:
        return False
    cast = expected.to(dtype).to(expected) if expected.is_floating_point() else expected
    return actual.shape == expected.shape and torch.equal(actual, cast)
