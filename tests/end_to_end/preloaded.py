# SPDX-License-Identifier: Apache-2.0
"""What the server of processes imports before it forks any: the frameworks, but not this package."""

import contextlib
import gc
import importlib

FRAMEWORKS = [
    *("mmpretrain.apis", "mmpretrain.engine", "mmpretrain.evaluation"),
    *("mmseg.apis", "mmseg.engine", "mmdet.apis", "mmdet.engine"),
    *("onnxruntime", "openvino", "nncf", "torch.onnx._internal.exporter._core"),
]

for name in FRAMEWORKS:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
gc.freeze()  # what is imported by now need not be searched for garbage
