# SPDX-License-Identifier: Apache-2.0
"""Export a PyTorch model to an ONNX graph, and verify that the graph computes the same."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from rich import box
from rich.table import Table
from torch import nn

from mmrepmlp.checkpoint import atomic_write, check_overwrite
from mmrepmlp.reparam import switch_to_deploy

from .graph import OPSET, check_axes, export_graph, verify_graph
from .int8_weights import store_weights_as_int8
from .network import ExportError, NamedOutputs
from .opsets import NEWEST, OLDEST
from .session import OnnxNetwork

TOLERANCE, INT8_TOLERANCE = 1e-4, 0.05


@dataclass
class OnnxReport:
    """The result of an export.

    Attributes:
        path: The ONNX file.
        opset: Version of ONNX's operators.
        part: What was exported: the name of a backbone or neck, or None for the whole model.
        operators: How often each operator occurs in the graph.
        errors: For each shape (N, C, H, W) of random images, the largest difference of an output from PyTorch's,
            relative to that output's largest value.
        megabytes: Size of the file, in units of 1e6 bytes.
    """

    path: Path
    opset: int
    part: str | None
    operators: dict[str, int]
    errors: dict[tuple[int, ...], float]
    megabytes: float

    def table(self) -> Table:
        """Make a table to print."""
        table = Table(title=f"{self.path}", title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_row("opset", str(self.opset))
        if self.part:
            parts = "backbone and neck" if self.part.endswith("neck") else "backbone"
            table.add_row("part", f"{parts}; what follows runs in PyTorch")
        table.add_row("size", f"{self.megabytes:.1f} MB")
        table.add_row("operators", ", ".join(f"{count} {name}" for name, count in self.operators.items()))
        for shape, error in self.errors.items():
            table.add_row(f"relative error, {' x '.join(map(str, shape))}", f"{error:.1e}")
        return table


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
    """Export a model to ONNX, run the graph in ONNX Runtime on random images, and write it if the outputs agree.

    A network that was trained with fake quantization becomes an int8 graph in QDQ format.

    The graph takes what the model takes: images that the data preprocessor has normalized. A classifier returns logits,
    a segmentor logits at the size of its head's feature map, a backbone its feature maps.

    Args:
        model: A classifier, segmentor or detector that MMEngine built, or a bare backbone. It is not changed.
        out: The file to write.
        size: Height and width of the images in pixels. Default: (224, 224).
        batch: Number of images, where it is not dynamic. Default: 1.
        dynamic: The symbolic axes of the graph, of ``batch``, ``height`` and ``width``. Default: ("batch",).
        opset: Version of ONNX's operators, from 13 to the newest that the installed onnx knows. Default: 20.
        part: ``"backbone"`` or, for any detector, ``"neck"``, to export only its feature maps; with the name of the
            model around it if that is not the outermost, e.g. ``"student.neck"``. Default: None, the whole model.
        deploy: Whether to convert to deploy form first. Default: True.
        tolerance: Largest allowed difference, relative to an output's largest value, in float32. Default: 1e-4; 0.05
            for a graph that rounds, where a value halfway between two levels may become either.
        overwrite: Whether an existing file may be replaced. Default: False.

    Returns:
        A report of the export.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is not set.
        ValueError: An argument is out of range.
        ExportError: The graph could not be exported, or does not compute the same.
    """
    out = Path(out)
    check_overwrite(out, overwrite=overwrite)
    check_axes(dynamic)
    if not OLDEST <= opset <= NEWEST:
        raise ValueError(f"opset={opset}: expected {OLDEST} to {NEWEST}, the newest of the installed onnx.")
    model = copy.deepcopy(model).float()
    model.eval()  # returns None in backbones of mmpretrain
    network = NamedOutputs(switch_to_deploy(model) if deploy else model, part).eval()
    shape = (max(batch, 2) if "batch" in dynamic else batch, *size)
    with atomic_write(out) as temporary:
        export_graph(network, temporary, shape, dynamic, opset)
        rounds = store_weights_as_int8(temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        try:
            graph = OnnxNetwork(temporary)
        except ValueError as error:
            raise ExportError(
                f"The installed ONNX Runtime cannot run the graph in opset {opset}, so that nothing can be compared "
                f"({error.__cause__}). Nothing was written; try another --opset."
            ) from error
        allowed = (INT8_TOLERANCE if rounds else TOLERANCE) if tolerance is None else tolerance
        errors = verify_graph(network, graph, shape, dynamic, allowed)
    operators = Counter(node.op_type for node in onnx.load(str(out), load_external_data=False).graph.node)
    return OnnxReport(out, opset, part, dict(operators.most_common()), errors, out.stat().st_size / 1e6)
