# SPDX-License-Identifier: Apache-2.0
"""Post-training quantization to int8 with ONNX Runtime's static quantization."""

import contextlib
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime
from mmengine.utils import digit_version
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.progress import track
from torch import Tensor

from mmrepmlp.checkpoint import atomic_write

from .int8_weights import QUANTIZABLE_OPERATORS
from .session import OnnxNetwork

# Older versions cannot run a product with a scale for each output pixel,
SCALES_OF_OUTPUTS = digit_version(onnxruntime.__version__) >= digit_version("1.32")
# and measure the ranges of activations again for each graph that they write.
KEEPS_RANGES = "calibration_cache_path" in inspect.signature(quantize_static).parameters


class CalibrationImages(CalibrationDataReader):
    """Batches of normalized images as ONNX Runtime's calibration data reader.

    Args:
        batches: Each of shape (N, C, H, W).
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict | None:
        """The next batch, None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def quantize_onnx(
    source: str | Path, out: str | Path, batches: Sequence[Tensor], keep_float: Sequence[str] = ()
) -> None:
    """Quantize an exported graph to int8: weights per channel, activations by calibration.

    The result is a graph in QDQ format. Weights of fully connected layers over tiles get a scale for each output
    pixel, with ONNX Runtime before 1.32 one for all.

    Args:
        source: The graph in float32.
        out: The file to write, atomically.
        batches: Images to calibrate with, normalized, each of shape (N, C, H, W).
        keep_float: Names of nodes to keep in float32. Default: none.
    """
    with atomic_write(out) as temporary, preprocess_graph(source) as (graph, cache):
        quantize_nodes(graph, temporary, cache, batches, exclude=keep_float)


def rank_nodes(source: str | Path, batches: Sequence[Tensor]) -> list[tuple[str, float]]:
    """Measure the loss of each quantizable node of a graph in int8, with the others in float32.

    Args:
        source: The graph in float32.
        batches: Images to calibrate with; the loss is measured on the first batch.

    Returns:
        Names of the nodes and the mean squared error of the first output over its variance, largest first.
    """
    errors = {}
    with preprocess_graph(source) as (graph, cache), tempfile.TemporaryDirectory() as folder:
        expected = OnnxNetwork(graph)(batches[0])[0]
        single = Path(folder, "single.onnx")
        for name in track(quantizable_nodes(graph), description="loss of each node", transient=True):
            quantize_nodes(graph, single, cache, batches, include=[name])
            difference = OnnxNetwork(single)(batches[0])[0] - expected
            errors[name] = (difference.square().mean() / expected.var()).item()
    return sorted(errors.items(), key=lambda item: item[1], reverse=True)


@contextlib.contextmanager
def preprocess_graph(source: str | Path) -> Iterator[tuple[Path, Path]]:
    """Yields a graph with inferred shapes, as the quantizer needs it, and a file for the ranges of activations."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "prepared.onnx")
        quant_pre_process(str(source), str(graph), skip_symbolic_shape=True)
        yield graph, Path(folder, "ranges.json")


def quantizable_nodes(graph: Path) -> list[str]:
    """Names of the nodes that are quantized."""
    return [node.name for node in onnx.load(str(graph)).graph.node if node.op_type in QUANTIZABLE_OPERATORS]


def quantize_nodes(
    graph: Path,
    out: Path,
    cache: Path,
    batches: Sequence[Tensor],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> None:
    """Quantize the nodes in ``include``, by default all, except those in ``exclude``."""
    columns = {"quant_type": QuantType.QInt8, "symmetric": True}
    columns |= {"axis": 2} if SCALES_OF_OUTPUTS else {}  # ONNX Runtime's default is the rows
    weights = [node.input[1] for node in onnx.load(str(graph)).graph.node if node.op_type == "MatMul"]
    shapes = {tensor.name: len(tensor.dims) for tensor in onnx.load(str(graph)).graph.initializer}
    quantize_static(
        str(graph),
        str(out),
        CalibrationImages(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=list(QUANTIZABLE_OPERATORS),
        nodes_to_quantize=list(include),
        nodes_to_exclude=list(exclude),
        extra_options={"TensorQuantOverrides": {name: [dict(columns)] for name in weights if shapes.get(name) == 3}},
        **({"calibration_cache_path": str(cache)} if KEEPS_RANGES else {}),
    )
