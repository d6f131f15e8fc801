# SPDX-License-Identifier: Apache-2.0
"""Verify a conversion: compare each converted module on its inputs in a forward pass, all other tensors bit for bit.

If every converted module computes the same as before, and no other tensor changed, the whole model computes the same,
whatever its heads are and however they are called.
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

SCALES = (1.0, 1.3)  # of the model's image size: one with whole tiles only, one that needs padding
CALLS = 20  # compared calls of a module in one pass, at most


@dataclass
class Forms:
    """A model before and after its conversion, and the allowed difference.

    Attributes:
        before: Model in training form.
        after: Model in deploy form.
        dtype: Precision of the converted weights, for reports.
        tolerance: Largest allowed difference, relative to an output's largest value.
    """

    before: nn.Module
    after: nn.Module
    dtype: torch.dtype
    tolerance: float

    def call(self, model: nn.Module, name: str, inputs: tuple[tuple, dict]) -> object:
        """Call a module of either form on copies of the inputs, in the precision of the training form."""
        like = next(self.before.parameters())
        args, kwargs = tree_map_only(
            Tensor, lambda x: x.to(like if x.is_floating_point() else like.device, copy=True), inputs
        )
        return model.get_submodule(name)(*args, **kwargs)


class Verification:
    """Comparison of converted modules with their training form.

    Args:
        model: The model in training form.
        forms: Pairs to compare, such as a conversion in float64, which must be exact, and the written file.

    Attributes:
        names: Names of the converted modules; the first name of a shared module.
        differences: Largest difference of each output in any call, in each precision.
    """

    def __init__(self, model: nn.Module, forms: Iterable[Forms]) -> None:
        self.model, self.forms = copy.deepcopy(model), list(forms)  # hooks and passes leave traces
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
        """Return all names of the converted modules; a shared one has several."""
        return [alias for aliases in self.aliases.values() for alias in aliases]

    def unverified(self) -> dict[str, str]:
        """Return the names of converted modules that were not verified, with the reasons."""
        reasons = {}
        for name in self.names:
            if name not in self.compared:
                reasons[name] = self.errors.get(name, "no forward pass reached it")
            elif name not in self.varied:
                reasons[name] = "its outputs are the same for all images"
        return reasons

    @torch.no_grad()
    def run_on_random_images(self) -> None:
        """Run the model on random images, up to the raw outputs of its heads if possible, and compare what it calls.

        Modules that this does not reach, such as those of a teacher, are run through the outermost enclosing module
        that can be called.
        """
        for scale in SCALES:
            images = random_images(self.model, 2, scale).float()
            with self.watch(self.model):
                outputs = call_model(self.model, images)
            if outputs and "" not in self.names:
                self.compare_whole(outputs, images)
        for name in self.unverified():
            path = name.split(".")
            for owner in (".".join(path[: end + 1]) for end in range(len(path))):
                if name in self.unverified():
                    part = self.model.get_submodule(owner)
                    for scale in SCALES:
                        with self.watch(self.model):
                            call_model(part, random_images(part, 2, scale).float())

    @contextmanager
    def watch(self, model: nn.Module, names: Iterable[str] | None = None) -> Iterator[None]:
        """Compare converted modules on the inputs that they get within this context.

        Args:
            model: The model in training form that is going to be called, or a copy of it.
            names: Names of the modules. Default: None, all converted ones.
        """
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
            except Exception as error:  # the module may not support the precision or size
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
        """Compare the outputs of the whole model.

        Heads can amplify rounding, for example by sorting, so that differences are reported but allowed. A model that
        can no longer be called is an error.
        """
        way, expected = outputs
        actual = call_model(self.forms[-1].after, images)
        still_called = actual is not None and actual[0] == way
        differences = compare_named(
            f"whole model, {way}", expected, actual[1] if still_called else None, self.forms[-1]
        )
        self.keep([replace(difference, required=not still_called) for difference in differences])

    def notice_samples(self, name: str, outputs: object) -> None:
        """Record whether the outputs of a module differ between any two samples."""
        for path, output in named_tensors(outputs):
            if name not in self.varied and output.dim() and len(output):
                first = self.first_samples.setdefault((name, path, output.shape[1:]), output[0].clone())
                if not (output == first).all():
                    self.varied.add(name)

    def keep(self, differences: Iterable[Difference]) -> None:
        """Keep the largest difference of each output; nan counts as the largest."""
        for difference in differences:
            key = difference.dtype, difference.output
            if key not in self.found or not difference.relative <= self.found[key].relative:
                self.found[key] = difference


def compare_named(name: str, expected: object, actual: object, forms: Forms) -> list[Difference]:
    """Compare the outputs of a module, and name them after it."""
    differences = compare_outputs({name: expected}, {name: actual}, forms.dtype, forms.tolerance)
    return [replace(d, output=d.output.removeprefix("output.")) for d in differences]


def changed_tensors(before: nn.Module, after: nn.Module, converted: Iterable[str], dtype: torch.dtype) -> list[str]:
    """Return the names of tensors outside the converted modules that differ, other than by a cast."""
    names = list(converted)
    expected, actual = (tensors_outside(model, names) for model in (before, after))
    return [name for name in expected | actual if not same_tensor(expected.get(name), actual.get(name), dtype)]


def tensors_outside(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a state dict that belong to none of the named modules, under any name."""
    inside = {id(tensor) for name in names for tensor in model.get_submodule(name).state_dict(keep_vars=True).values()}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in inside}


def same_tensor(expected: Tensor | None, actual: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same bit for bit, except for a cast of the second."""
    if expected is None or actual is None:
        return False
    cast = expected.to(dtype).to(expected) if expected.is_floating_point() else expected
    return actual.shape == expected.shape and torch.equal(actual, cast)
