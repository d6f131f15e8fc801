# SPDX-License-Identifier: Apache-2.0
"""From a network to the graph of a runtime in a precision."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from torch import Tensor, nn

from mmrepmlp.export.graph import record
from mmrepmlp.export.int8_weights import store_weights_as_int8
from mmrepmlp.export.prediction import PredictionNetwork
from mmrepmlp.quantization.aware import is_quantized

from .folder import DeploymentError, load_graph


def make_graph(
    network: PredictionNetwork,
    out: Path,
    precision: str,
    shape: tuple[int, int, int],
    dynamic: Sequence[str],
    calibration: Callable[[], list[Tensor]],
    measure: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
) -> None:
    """Write the graph of a network: ``.onnx``, or ``.xml`` and ``.bin`` of OpenVINO.

    Args:
        network: The network.
        out: The file to write.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        shape: Number, height and width of the images.
        dynamic: The symbolic axes.
        calibration: Gives images to calibrate int8 with, in the size that the graph takes.
        measure: Gives the main metric of a graph, in points. Default: None, int8 is not judged by it.
        max_drop: How far the metric may drop in int8, in points. Default: None.

    Raises:
        ExportError: The network cannot be recorded.
        DeploymentError: It was trained for int8, and another precision is asked for.
    """
    is_int8 = is_quantized(network)
    if is_int8 and precision != "int8":
        raise DeploymentError(
            "The network was trained with fake quantization, and its graph is int8: pass precision='int8' "
            "(--precision int8). Nothing was written."
        )
    quantizes = precision == "int8" and not is_int8
    images = calibration() if quantizes else []
    if "batch" not in dynamic:
        images = [image.expand(shape[0], -1, -1, -1).contiguous() for image in images]
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder, "recorded.onnx")
        record(network, recorded, shape, dynamic)
        store_weights_as_int8(recorded)
        if out.suffix == ".onnx":
            runtime, graph = "onnxruntime", onnx.load(str(recorded))
        else:
            import openvino

            runtime, graph = "openvino", openvino.convert_model(str(recorded))
    if quantizes:
        from mmrepmlp.export.post_training import quantize_graph

        judge = measure and (lambda candidate: measure(load_graph(candidate, runtime, "int8")))
        graph = quantize_graph(graph, images, "images", judge, max_drop)
    if runtime == "onnxruntime":
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, str(out))
    else:  # weights in half precision, where they fit into its range: bfloat16 rounds them more
        openvino.save_model(graph, str(out), compress_to_fp16=precision == "bfloat16")
