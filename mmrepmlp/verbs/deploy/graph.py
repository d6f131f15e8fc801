# SPDX-License-Identifier: Apache-2.0
"""From a network to the graph of a runtime in a precision."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from torch import Tensor, nn

from mmrepmlp.export.graph import export_graph
from mmrepmlp.export.int8_weights import store_weights_as_int8
from mmrepmlp.export.prediction import PredictionNetwork

from .folder import load_graph


def make_graph(
    network: PredictionNetwork,
    out: Path,
    precision: str,
    shape: tuple[int, int, int],
    dynamic: Sequence[str],
    calibration: list[Tensor] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
) -> None:
    """Write the graph of a network: ``.onnx``, or ``.xml`` and ``.bin`` of OpenVINO.

    With images for ``calibration``, in the size that the graph takes, it is quantized after training; with what gives
    the main metric of a graph, in points, layers are left in float until it drops by no more than ``max_drop``.
    """
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder, "recorded.onnx")
        export_graph(network, recorded, shape, dynamic)
        store_weights_as_int8(recorded)
        if out.suffix == ".onnx":
            runtime, graph = "onnxruntime", onnx.load(str(recorded))
        else:
            import openvino

            runtime, graph = "openvino", openvino.convert_model(str(recorded))
    if calibration is not None:
        from mmrepmlp.export.post_training import quantize_graph

        if "batch" not in dynamic:
            calibration = [image.expand(shape[0], -1, -1, -1).contiguous() for image in calibration]
        judge = measure and (lambda candidate: measure(load_graph(candidate, runtime, "int8")))
        graph = quantize_graph(graph, calibration, "images", judge, max_drop)
    if runtime == "onnxruntime":
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, str(out))
    else:  # weights in half precision, where they fit into its range: bfloat16 rounds them more
        openvino.save_model(graph, str(out), compress_to_fp16=precision == "bfloat16")
