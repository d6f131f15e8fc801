# SPDX-License-Identifier: Apache-2.0
from importlib.util import find_spec

import torch

missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
if missing:
    raise ImportError(f"Export needs {', '.join(missing)}: pip install 'mmrepmlp[export]'")
if not hasattr(torch.export.Dim, "DYNAMIC"):
    raise ImportError(f"Export needs torch 2.6 or newer; {torch.__version__} is installed.")

from .graph import DYNAMIC_AXES  # noqa: E402
from .network import ExportError  # noqa: E402
from .onnx import OnnxReport, export_onnx  # noqa: E402
from .session import OnnxNetwork  # noqa: E402

__all__ = ["DYNAMIC_AXES", "ExportError", "OnnxNetwork", "OnnxReport", "export_onnx"]
