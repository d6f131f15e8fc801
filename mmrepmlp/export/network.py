# SPDX-License-Identifier: Apache-2.0
"""Models as functions of images only, as exporters need them."""

import inspect
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import image_channels
from mmrepmlp.reparam import distance, named_tensors


class ExportError(MMRepMLPError):
    """A graph could not be exported, or does not compute the same as the model; nothing was written."""


class NamedOutputs(nn.Module):
    """A model as a function of images only, which returns a flat tuple.

    Args:
        model: A model of any framework, run up to its raw outputs, or a bare backbone.
        part: Name of a backbone or neck in the model, to run up to its feature maps. Default: None, the whole model.
    """

    axes: ClassVar[dict[str, int]] = {"batch": 0, "height": 2, "width": 3}

    def __init__(self, model: nn.Module, part: str | None = None) -> None:
        super().__init__()
        parts = exportable_parts(model)
        if part not in (None, *parts):
            known = ", ".join(parts) or "there is none"
            raise ValueError(f"part={part!r}: expected None, or a part of the model: {known}.")
        self.model, self.part = model, part
        owner, _, self.name = (part or "").rpartition(".")
        self.owner = model.get_submodule(owner)
        self.arguments = {"mode": "tensor"} if "mode" in inspect.signature(model.forward).parameters else {}
        self.channels = image_channels(model)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (N, C, H, W) to the model's outputs."""
        if self.part:
            outputs = self.owner.backbone(images)
            outputs = self.owner.neck(outputs) if self.name == "neck" else outputs
        else:
            outputs = self.model(images, **self.arguments)
        return tuple(tensor for _, tensor in named_tensors(outputs))

    def make_images(self, batch: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """Make random images that :meth:`forward` takes."""
        return torch.randn(batch, self.channels, height, width, generator=generator)

    def error(self, images: Tensor, outputs: Sequence[Tensor]) -> float:
        """Return the error of a graph's outputs: their largest difference from the network's, relative to its largest
        value, or the share that differs for integers; nan if an output has nan."""
        errors = [
            distance(a, e)[1] if e.is_floating_point() or a.shape != e.shape else (a != e).double().mean().item()
            for a, e in zip(outputs, self(images), strict=True)
        ]
        return float(torch.tensor(errors, dtype=torch.float64).amax())

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Call the network as the exporter does."""
        try:
            return self(images)
        except Exception as error:
            reason = ": ".join(filter(None, (type(error).__name__, str(error))))
            name = self.part or type(self.model).__name__
            raise ExportError(
                f"{name} cannot be exported: calling it with just images of shape {tuple(images.shape)} fails "
                f"({reason}).{self.remedy}"
            ) from error

    @property
    def remedy(self) -> str:
        """Advice on what else can be exported, a space and a sentence; empty if there is nothing else."""
        names = [] if self.part else exportable_parts(self.model)
        parts = " or ".join(f"part={name!r}" for name in names)
        return f" Export its feature maps, with {parts} (--part)." if names else ""


def exportable_parts(model: nn.Module) -> list[str]:
    """Return the names of the outermost backbones in a model, each after its neck if it has one."""
    names, parts = {name for name, _ in model.named_modules()}, []
    for name in (name for name, _ in model.named_modules() if name.rpartition(".")[2] == "backbone"):
        if not any(name.startswith(f"{part}.") for part in parts):
            neck = f"{name.removesuffix('backbone')}neck"
            parts += [neck, name] if neck in names else [name]
    return parts


class BatchedGraph(nn.Module):
    """A graph as a module. A graph of fixed batch size is called batch by batch, the last batch filled up.

    Subclasses set ``batch``, the number of images that the graph takes, None for any, and run the graph once in
    ``run``.
    """

    batch: int | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images, in the layout and type of the graph's input, to its outputs."""
        if self.batch is None:
            return self.run(images)
        parts = []
        for part in images.split(self.batch):
            missing = self.batch - len(part)
            parts.append(self.run(torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part))
        return tuple(torch.cat(outputs)[: len(images)] for outputs in zip(*parts))
