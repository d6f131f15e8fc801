# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch model to an ONNX graph that proves to compute the same."""

import copy
import inspect
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from mmrepmlp.checkpoint import atomic_write, check_overwrite
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import image_channels, named_parts
from mmrepmlp.quantization.exportable import make_quantizers_exportable
from mmrepmlp.reparam import distance, named_tensors, switch_to_deploy

from .int8_weights import store_weights_as_int8
from .opsets import NEWEST, OLDEST, convert_opset, recorded_opset
from .pooling import make_pooling_exportable
from .session import OnnxNetwork

DYNAMIC_AXES = {"batch": 0, "height": 2, "width": 3}
OPSET = 20  # the first with GELU as an operator
TOLERANCE, INT8_TOLERANCE = 1e-4, 0.05


class ExportError(MMRepMLPError):
    """A graph could not be made, or does not compute what the model does; nothing was written."""


@dataclass
class OnnxReport:
    """What was exported.

    Attributes:
        path: The ONNX file.
        opset: Version of ONNX's operators.
        part: What was exported: the name of a backbone or neck, or None for the whole model.
        operators: How often each occurs in the graph.
        errors: For each shape (N, C, H, W) of random images, the largest difference of an output from PyTorch's, over
            that output's largest value.
        megabytes: Size of the file, in units of 1e6 bytes.
    """

    path: Path
    opset: int
    part: str | None
    operators: dict[str, int]
    errors: dict[tuple[int, ...], float]
    megabytes: float

    def table(self) -> Table:
        """To print."""
        table = Table(title=f"{self.path}", title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_row("opset", str(self.opset))
        if self.part:
            maps = "backbone and neck" if self.part.endswith("neck") else "backbone"
            table.add_row("part", f"{maps}; what follows stays in PyTorch")
        table.add_row("size", f"{self.megabytes:.1f} MB")
        table.add_row("operators", ", ".join(f"{count} {name}" for name, count in self.operators.items()))
        for shape, error in self.errors.items():
            table.add_row(f"relative error, {' x '.join(map(str, shape))}", f"{error:.1e}")
        return table


class NamedOutputs(nn.Module):
    """A model as a function of images alone, whose outputs are a flat tuple.

    Args:
        model: A model of any framework, run up to its raw outputs, or a bare backbone.
        part: Name of a backbone or neck in the model, to run up to its maps. Default: None, the whole model.
    """

    def __init__(self, model: nn.Module, part: str | None = None) -> None:
        super().__init__()
        self.model, self.part = model, part
        owner, _, self.name = (part or "").rpartition(".")
        self.owner = model.get_submodule(owner)
        self.arguments = {"mode": "tensor"} if "mode" in inspect.signature(model.forward).parameters else {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (N, C, H, W) to the model's outputs."""
        if self.part:
            outputs = self.owner.backbone(images)
            outputs = self.owner.neck(outputs) if self.name == "neck" else outputs
        else:
            outputs = self.model(images, **self.arguments)
        return tuple(tensor for _, tensor in named_tensors(outputs))

    def run(self, images: Tensor) -> object:
        """Call the network, as the exporter will.

        Raises:
            ExportError: It cannot be called on images alone, or not on these.
        """
        try:
            return self(images)
        except Exception as error:
            reason = type(error).__name__, str(error)
            what = f"{self.part} does not take" if self.part else f"{type(self.model).__name__} takes more than"
            raise ExportError(
                f"{what} images of shape {tuple(images.shape)} ({': '.join(filter(None, reason))}): no graph of it can "
                f"be made.{self.remedy}"
            ) from error

    @property
    def remedy(self) -> str:
        """What else can be exported, as a sentence with a space in front; empty if nothing can."""
        names = [] if self.part else exportable_parts(self.model)
        return f" Export its maps, with {' or '.join(f'part={name!r}' for name in names)} (--part)." if names else ""


def exportable_parts(model: nn.Module) -> list[str]:
    """Names of the backbones and necks in a model."""
    parts = {name: part for name, part in named_parts(model).items() if part is not model}
    backbones = [name for name in parts if name.split(".")[-1] == "backbone"]
    necks = [f"{name.removesuffix('backbone')}neck" for name in backbones]
    return [name for pair in zip(necks, backbones) for name in pair if name in parts]


def export_onnx(
    model: nn.Module,
    out: str | Path,
    size: tuple[int, int] = (224, 224),
    batch: int = 1,
    dynamic: Sequence[str] = ("batch",),
    opset: int = OPSET,
    part: str | None = None,
    deploy: bool = True,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> OnnxReport:
    """Export a model to ONNX, run the graph in ONNX Runtime on fresh images, and write it if the outputs agree.

    A network that was trained with fake quantization becomes an int8 graph in QDQ format.

    The graph takes what the model takes: images that the data preprocessor has normalized. A classifier gives logits,
    a segmentor logits at the size of its head's map, a backbone its maps.

    Args:
        model: A classifier, segmentor or detector that mmengine built, or a bare backbone. Left as it is.
        out: The file to write.
        size: Height and width of the images in pixels. Default: (224, 224).
        batch: Number of images, where it is not dynamic. Default: 1.
        dynamic: The symbolic axes of the graph, of ``batch``, ``height`` and ``width``. Default: ("batch",).
        opset: Version of ONNX's operators, from 13 to the newest that the installed onnx knows. Default: 20.
        part: ``"backbone"`` to export its maps alone, ``"neck"`` for the maps of the neck, which serves any detector;
            with the name of the model around it where that is not the outermost, e.g. ``"student.neck"``.
            Default: None, the whole model.
        deploy: Whether to convert to deploy form first. Default: True.
        tolerance: Largest allowed difference, relative to an output's largest value, in float32. Default: 1e-4; 0.05
            for a graph that rounds, where a value halfway between two levels may become either.
        overwrite: Whether an existing file may be replaced. Default: False.

    Returns:
        What was exported.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        ValueError: An argument is out of its range.
        ExportError: The graph could not be made or does not compute the same.
    """
    out = Path(out)
    check_overwrite(out, overwrite=overwrite)
    unknown = sorted(set(dynamic) - DYNAMIC_AXES.keys())
    if unknown:
        raise ValueError(f"dynamic={', '.join(unknown)}: expected some of {', '.join(DYNAMIC_AXES)}.")
    if not OLDEST <= opset <= NEWEST:
        raise ValueError(f"opset={opset}: expected {OLDEST} to {NEWEST}, the newest of the installed onnx.")
    if part is not None and part not in exportable_parts(model):
        known = ", ".join(exportable_parts(model)) or "there is none"
        raise ValueError(f"part={part!r}: expected None, or a part of the model: {known}.")
    model = copy.deepcopy(model).float().eval()
    network = NamedOutputs(switch_to_deploy(model) if deploy else model, part).eval()
    shape = (max(batch, 2) if "batch" in dynamic else batch, image_channels(model), *size)
    with atomic_write(out) as temporary:
        record(network, temporary, shape, dynamic, opset)
        rounds = store_weights_as_int8(temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        errors = compare(network, start_session(temporary, opset), shape, dynamic)
        worst = max(errors, key=lambda key: errors[key] if errors[key] == errors[key] else float("inf"))
        allowed = (INT8_TOLERANCE if rounds else TOLERANCE) if tolerance is None else tolerance
        if not errors[worst] <= allowed:
            raise ExportError(
                f"The graph does not compute what the model does: {errors[worst]:.1e} relative on images of shape "
                f"{worst}, allowed {allowed:.0e}. Nothing was written.{network.remedy}"
            )
    operators = Counter(node.op_type for node in onnx.load(str(out), load_external_data=False).graph.node)
    return OnnxReport(out, opset, part, dict(operators.most_common()), errors, out.stat().st_size / 1e6)


def record(network: NamedOutputs, file: Path, shape: tuple[int, ...], dynamic: Sequence[str], opset: int) -> None:
    """Record a network as an ONNX graph.

    Raises:
        ExportError: The exporter cannot.
    """
    images = torch.randn(shape)
    names = [name.removeprefix("output.").replace(".", "_") for name, _ in named_tensors(network.run(images))]
    names = [f"output_{name}" for name in names] if len(names) > 1 else ["output"]
    axes = {DYNAMIC_AXES[name]: torch.export.Dim.DYNAMIC for name in dynamic}
    try:
        with torch.no_grad(), make_pooling_exportable(network), make_quantizers_exportable(network):
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=recorded_opset(opset),
                dynamic_shapes=(axes,) if axes else None,
                input_names=["images"],
                output_names=names,
                verbose=False,
            )
        for node in program.model.graph:
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of the machine that exported
        onnx.save(convert_opset(program.model_proto, opset), str(file))
    except Exception as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        fixed = " Make less of it symbolic (--dynamic, without values for a fixed size)." if "ranges" in reason else ""
        raise ExportError(
            f"The model cannot be recorded in opset {opset}: {reason}. Nothing was written.{fixed}{network.remedy}"
        ) from error


def start_session(file: Path, opset: int) -> OnnxNetwork:
    """Load a graph into ONNX Runtime, which has to prove it.

    Raises:
        ExportError: It cannot run the graph.
    """
    try:
        return OnnxNetwork(file)
    except ValueError as error:
        reason = str(error.__cause__).splitlines()[0]
        raise ExportError(
            f"The installed ONNX Runtime cannot run the graph in opset {opset}, so that nothing can be compared: "
            f"{reason}. Nothing was written; try another --opset."
        ) from error


@torch.no_grad()
def compare(
    network: NamedOutputs, exported: OnnxNetwork, shape: tuple[int, ...], dynamic: Sequence[str]
) -> dict[tuple[int, ...], float]:
    """How far a graph's outputs are from the network's on fresh images, at several shapes where it is dynamic."""
    errors = {}
    generator = torch.Generator().manual_seed(0)
    for fresh in other_shapes(shape, dynamic):
        images = torch.randn(fresh, generator=generator)
        pairs = zip(network(images), exported(images), strict=True)
        errors[fresh] = float(np.max([distance(actual, expected)[1] for expected, actual in pairs]))  # nan if any is
    return errors


def other_shapes(shape: tuple[int, ...], dynamic: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Shapes that a graph has to serve: the one it was made with, and others along its dynamic axes."""
    choices = {"batch": (1, 3), "height": (1.0, 0.6, 1.3), "width": (1.0, 1.7, 0.7)}
    n, c, h, w = shape
    batches = choices["batch"] if "batch" in dynamic else (n,)
    heights = [int(h * factor) for factor in choices["height"]] if "height" in dynamic else [h]
    widths = [int(w * factor) for factor in choices["width"]] if "width" in dynamic else [w]
    sides = list(itertools.zip_longest(heights, widths, fillvalue=h if len(heights) == 1 else w))
    for batch, (height, width) in zip(itertools.cycle(batches), sides * len(batches)):
        yield batch, c, height, width
