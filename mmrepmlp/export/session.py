# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)
from torch import Tensor, nn


class OnnxNetwork(nn.Module):
    """An ONNX graph as a module, run by ONNX Runtime on the CPU.

    A graph of fixed batch size is run several times; the last batch is padded with the last image.

    Args:
        path: The ONNX file.
        threads: Number of threads; 0 for ONNX Runtime's choice. Default: torch's number.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a graph that ONNX Runtime can run.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        # Spinning threads slow down other computations of this process, other sessions included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist. Export a graph with tools/deployment/export_onnx.py.")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (InvalidProtobuf, InvalidGraph, InvalidArgument, Fail, NotImplemented, RuntimeException) as error:
            raise ValueError(f"{path} is not a graph that ONNX Runtime can run: {str(error).strip()}") from error
        (images,) = self.session.get_inputs()
        self.name = images.name
        first, *others = self.session.get_outputs()
        self.outputs, self.channels = 1 + len(others), first.shape[1] if len(first.shape) > 1 else 1
        self.batch = images.shape[0] if isinstance(images.shape[0], int) else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (N, C, H, W) to the graph's outputs."""
        if self.batch is None:
            return self.run(images)
        parts = [self.run(self.pad_batch(part)) for part in images.split(self.batch)]
        return tuple(torch.cat(outputs)[: len(images)] for outputs in zip(*parts))

    def pad_batch(self, images: Tensor) -> Tensor:
        """Repeat the last image up to the graph's batch size."""
        missing = self.batch - len(images)
        return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the graph once."""
        outputs = self.session.run(None, {self.name: images.detach().contiguous().numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)
