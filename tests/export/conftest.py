# SPDX-License-Identifier: Apache-2.0
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmrepmlp.export import OnnxReport, export_onnx
from mmrepmlp.models import RepMLPNet
from tests.conftest import SHALLOW
from tests.helpers import randomize


def random_network(**settings) -> RepMLPNet:
    torch.manual_seed(0)
    return randomize(RepMLPNet(SHALLOW, img_size=64, **settings), torch.Generator().manual_seed(0), spread=0.1).eval()


@pytest.fixture(scope="package")
def backbone() -> RepMLPNet:
    return random_network(out_indices=(0, 1, 2, 3))


@pytest.fixture(scope="package")
def export_once(backbone, build_once) -> Callable[..., OnnxReport]:
    """The backbone's graph for 64x64 pixels with some symbolic axes, exported once for all tests."""

    def export(*dynamic: str) -> OnnxReport:
        def write(folder: Path) -> None:
            report = export_onnx(backbone, folder / "network.onnx", size=(64, 64), batch=2, dynamic=dynamic)
            (folder / "report.pickle").write_bytes(pickle.dumps(report))

        return pickle.loads((build_once(f"graph_{'_'.join(dynamic)}", write) / "report.pickle").read_bytes())

    return export
