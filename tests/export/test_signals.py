# SPDX-License-Identifier: Apache-2.0
"""Signals after OpenVINO and NNCF were used: Ctrl-C, or a data loader's worker that ends."""

import gc
import os
import signal

import pytest
import torch

from mmrepmlp.export import export_onnx
from tests.end_to_end.processes import start
from tests.export.conftest import random_network

pytestmark = pytest.mark.slow


def interrupt() -> None:
    """What Ctrl-C does, also where a shell has started the tests in the background, once all that is not needed any
    more is gone."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def run_overlapping_graphs(path: str) -> None:
    from mmrepmlp.export.openvino import OpenVinoNetwork

    first, second = OpenVinoNetwork(path), OpenVinoNetwork(path)
    del first
    gc.collect()
    del second
    interrupt()


def quantize(path: str) -> None:
    import openvino

    from mmrepmlp.export.post_training import quantize_graph

    images = [torch.randn(1, 3, 32, 32) for _ in range(2)]

    def measure(graph: object) -> float:
        interrupt()
        return float(next(iter(graph([images[0].numpy()]).values())).std())

    quantized = quantize_graph(openvino.convert_model(path), images, "images", measure, max_drop=1e-9)
    interrupt()
    del quantized
    interrupt()


@pytest.mark.parametrize("use", [run_overlapping_graphs, quantize])
def test_a_process_survives_its_signals(use, tmp_path):
    export_onnx(random_network(out_indices=(0,)), tmp_path / "network.onnx", size=(32, 32), dynamic=())
    process = start(use, str(tmp_path / "network.onnx"))
    process.join()
    assert process.exitcode == 0
