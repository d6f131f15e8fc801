# SPDX-License-Identifier: Apache-2.0
"""Export a network as an ONNX graph, and verify that a graph computes the same."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from .exportable import make_exportable
from .network import ExportError, NamedOutputs
from .opsets import convert_opset, exporter_opset

OPSET = 20  # the first with GELU as an operator
DYNAMIC_AXES = ("batch", "height", "width")
FIXED = " Make fewer axes symbolic (--dynamic, without values for a fixed size)."
SCALES = ((1.0, 1.0), (0.6, 1.7), (1.3, 0.7))  # factors of the height and width of an export, to check other sizes


def check_axes(dynamic: Sequence[str]) -> None:
    """Check the names of symbolic axes."""
    unknown = sorted(set(dynamic) - set(DYNAMIC_AXES))
    if unknown:
        raise ValueError(f"dynamic={', '.join(unknown)}: expected some of {', '.join(DYNAMIC_AXES)}.")


@torch.no_grad()
def export_graph(
    network: NamedOutputs, file: Path, shape: tuple[int, int, int], dynamic: Sequence[str] = (), opset: int = OPSET
) -> None:
    """Export a network in eval mode as an ONNX graph.

    Args:
        network: The network.
        file: The file to write.
        shape: Number, height and width of the images.
        dynamic: Those of these axes that are symbolic. Default: none.
        opset: Version of ONNX's operators. Default: 20.

    Raises:
        ExportError: The network does not take images of a shape that the graph has to serve, or cannot be exported.
    """
    images = network.make_images(*shape)
    outputs = network.run(images)
    for served in shapes_to_serve(shape, dynamic):  # first, since an export takes minutes
        try:
            network.run(network.make_images(*served))
        except ExportError as error:
            raise ExportError(f"{error}{FIXED}") from error
    axes = {network.axes[name]: torch.export.Dim.DYNAMIC for name in dynamic}
    try:
        with make_exportable(network):
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=exporter_opset(opset),
                dynamic_shapes=(axes,) if axes else None,
                input_names=["images"],
                output_names=[f"output_{i}" for i in range(len(outputs))] if len(outputs) > 1 else ["output"],
                verbose=False,
            )
        for node in program.model.graph:
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of the machine that exported
        onnx.save(convert_opset(program.model_proto, opset), str(file))
    except Exception as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        fixed = FIXED if "ranges" in reason else ""
        raise ExportError(
            f"The model cannot be exported in opset {opset}: {reason}. Nothing was written.{fixed}{network.remedy}"
        ) from error


@torch.no_grad()
def verify_graph(
    network: NamedOutputs,
    exported: Callable[[Tensor], Sequence[Tensor]],
    shape: tuple[int, int, int],
    dynamic: Sequence[str],
    tolerance: float,
) -> dict[tuple[int, ...], float]:
    """Compare the outputs of a graph with those of the network, on random images of all shapes that it has to serve.

    Returns:
        The :meth:`~NamedOutputs.error` for each shape.

    Raises:
        ExportError: The graph does not take such images, or an error is above the tolerance.
    """
    errors = {}
    generator = torch.Generator().manual_seed(0)
    for other in shapes_to_serve(shape, dynamic):
        images = network.make_images(*other, generator=generator)
        try:
            error = network.error(images, exported(images))
        except Exception as reason:
            raise ExportError(
                f"The model or its graph does not take images of shape {tuple(images.shape)}, which a graph with "
                f"symbolic {', '.join(dynamic) or 'nothing'} has to serve ({type(reason).__name__}: {reason}). Nothing "
                f"was written.{FIXED}"
            ) from reason
        if not error <= tolerance:  # nan is not within it
            raise ExportError(
                f"The graph does not compute what the model does: {error:.1e} relative on images of shape "
                f"{tuple(images.shape)}, allowed {tolerance:.0e}. Nothing was written.{network.remedy}"
            )
        errors[tuple(images.shape)] = error
    return errors


def shapes_to_serve(shape: tuple[int, int, int], dynamic: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return number, height and width of images that a graph has to serve: those of the export, and others along its
    symbolic axes."""
    number, height, width = shape
    sides = [
        (int(height * tall) if "height" in dynamic else height, int(width * wide) if "width" in dynamic else width)
        for tall, wide in SCALES
    ]
    batches = (1, 3) if "batch" in dynamic else (number,)
    return [(batch, *side) for side in dict.fromkeys(sides) for batch in batches]
