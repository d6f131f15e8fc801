# SPDX-License-Identifier: Apache-2.0
"""Record a network as an ONNX graph, and compare what a runtime computes with it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from mmrepmlp.quantization.exportable import make_quantizers_exportable

from .network import ExportError, NamedOutputs
from .opsets import convert_opset, recorded_opset
from .pooling import make_pooling_exportable

DYNAMIC_AXES = ("batch", "height", "width")
FIXED = " Make less of it symbolic (--dynamic, without values for a fixed size)."


def check_axes(dynamic: Sequence[str]) -> None:
    """Check the names of symbolic axes.

    Raises:
        ValueError: One is unknown.
    """
    unknown = sorted(set(dynamic) - set(DYNAMIC_AXES))
    if unknown:
        raise ValueError(f"dynamic={', '.join(unknown)}: expected some of {', '.join(DYNAMIC_AXES)}.")


def record(network: NamedOutputs, file: Path, shape: tuple[int, int, int], dynamic: Sequence[str], opset: int) -> None:
    """Record a network as an ONNX graph.

    Args:
        network: What to record, in eval mode.
        file: The file to write.
        shape: Number, height and width of the images.
        dynamic: The symbolic axes, from :data:`DYNAMIC_AXES`.
        opset: Version of ONNX's operators.

    Raises:
        ExportError: The exporter cannot, or the network does not take images of all shapes that the graph has to serve.
    """
    images = network.make_images(*shape)
    with torch.no_grad():
        outputs = network.run(images)
    check_shapes(network, shape, dynamic)  # first, since to record may take minutes
    names = [f"output_{i}" for i in range(len(outputs))] if len(outputs) > 1 else ["output"]
    axes = {network.axes[name]: torch.export.Dim.DYNAMIC for name in dynamic}
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
        fixed = FIXED if "ranges" in reason else ""
        raise ExportError(
            f"The model cannot be recorded in opset {opset}: {reason}. Nothing was written.{fixed}{network.remedy}"
        ) from error


@torch.no_grad()
def check_shapes(network: NamedOutputs, shape: tuple[int, int, int], dynamic: Sequence[str]) -> None:
    """Run a network on images of all shapes that its graph has to serve.

    Raises:
        ExportError: It does not take them.
    """
    for other in other_shapes(shape, dynamic):
        images = network.make_images(*other)
        try:
            network(images)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip().rstrip(".:")
            raise ExportError(
                f"The model does not take images of shape {tuple(images.shape)}, which a graph with symbolic "
                f"{', '.join(dynamic)} has to serve ({reason}). Nothing was written.{FIXED}"
            ) from error


@torch.no_grad()
def compare(
    network: NamedOutputs,
    exported: Callable[[Tensor], Sequence[Tensor]],
    shape: tuple[int, int, int],
    dynamic: Sequence[str],
) -> dict[tuple[int, ...], float]:
    """How far a graph's outputs are from the network's on fresh images, at several shapes where it is dynamic.

    Returns:
        For each shape of images the network's :meth:`~NamedOutputs.error`.
    """
    errors = {}
    generator = torch.Generator().manual_seed(0)
    for fresh in other_shapes(shape, dynamic):
        images = network.make_images(*fresh, generator=generator)
        errors[tuple(images.shape)] = network.error(images, exported(images))
    return errors


def worst_shape(errors: dict[tuple[int, ...], float]) -> tuple[int, ...]:
    """The shape of the largest error; nan counts as the largest."""
    return max(errors, key=lambda shape: errors[shape] if errors[shape] == errors[shape] else float("inf"))


def other_shapes(shape: tuple[int, int, int], dynamic: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Shapes that a graph has to serve: the one it was made with, and others along its dynamic axes."""
    choices = {"batch": (1, 3), "height": (1.0, 0.6, 1.3), "width": (1.0, 1.7, 0.7)}
    n, h, w = shape
    batches = choices["batch"] if "batch" in dynamic else (n,)
    heights = [int(h * factor) for factor in choices["height"]] if "height" in dynamic else [h]
    widths = [int(w * factor) for factor in choices["width"]] if "width" in dynamic else [w]
    sides = list(itertools.zip_longest(heights, widths, fillvalue=h if len(heights) == 1 else w))
    for batch, (height, width) in zip(itertools.cycle(batches), sides * len(batches)):
        yield batch, height, width
