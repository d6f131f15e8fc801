# SPDX-License-Identifier: Apache-2.0
"""Export a network to a graph for a runtime, in a precision."""

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
    """Write the graph of a network, as ``.onnx``, or as OpenVINO's ``.xml`` and ``.bin``.

    Args:
        network: The network, from images to predictions.
        out: File to write, ``.onnx`` or ``.xml``.
        precision: Precision of the graph.
        shape: Batch size, height and width of the images.
        dynamic: Dynamic axes.
        calibration: Images (1, H, W, C), in the size that the graph takes, to quantize it with. Default: None, not
            quantized here.
        measure: Function that returns the main metric of a graph, in percentage points. Default: None.
        max_drop: Largest allowed drop of the metric; layers are left in float to stay within it. Default: None.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "exported.onnx")
        export_graph(network, exported, shape, dynamic)
        store_weights_as_int8(exported)
        if out.suffix == ".onnx":
            runtime, graph = "onnxruntime", onnx.load(str(exported))
        else:
            import openvino

            runtime, graph = "openvino", openvino.convert_model(str(exported))
    if calibration is not None:
        from mmrepmlp.export.post_training import quantize_graph

        if "batch" not in dynamic:
            calibration = [image.expand(shape[0], -1, -1, -1).contiguous() for image in calibration]
        judge = measure and (lambda candidate: measure(load_graph(candidate, runtime, "int8")))
        graph = quantize_graph(graph, calibration, "images", judge, max_drop)
    if runtime == "onnxruntime":
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, str(out))
    else:  # float16 weights if they fit into its range, since bfloat16 rounds more
        openvino.save_model(graph, str(out), compress_to_fp16=precision == "bfloat16")
