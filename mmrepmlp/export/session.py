# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from .network import BatchedGraph


class OnnxNetwork(BatchedGraph):
    """An ONNX graph as a module, run by ONNX Runtime on the CPU in as many threads as torch has.

    Args:
        graph: Path of the ONNX file, or the model that onnx reads from it.
    """

    def __init__(self, graph: str | Path | onnx.ModelProto) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Spinning threads slow down other computations of this process, other sessions included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        in_memory = isinstance(graph, onnx.ModelProto)
        name = "The model" if in_memory else str(graph)
        if not in_memory and not Path(graph).is_file():
            raise FileNotFoundError(f"{graph} does not exist. Export a graph with mmrepmlp deploy --raw.")
        content = graph.SerializeToString() if in_memory else name
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no public names
            raise ValueError(f"{name} is not a graph that ONNX Runtime can run: {str(error).strip()}") from error
        (images,) = self.session.get_inputs()
        self.name = images.name
        self.batch = images.shape[0] if isinstance(images.shape[0], int) else None

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the graph once."""
        outputs = self.session.run(None, {self.name: images.detach().contiguous().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)
