# SPDX-License-Identifier: Apache-2.0
"""What the server of processes imports before it forks any: the frameworks, but not this package."""

import contextlib
import importlib

from tests.spare import spare_exporter, spare_garbage, spare_mmengine

FRAMEWORKS = [
    *("mmpretrain.apis", "mmpretrain.engine", "mmpretrain.evaluation"),
    *("mmseg.apis", "mmseg.engine", "mmdet.apis", "mmdet.engine"),
    *("onnxruntime", "openvino", "nncf", "torch.onnx._internal.exporter._core"),
]

for name in FRAMEWORKS:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
spare_mmengine()
spare_exporter()
spare_garbage()
