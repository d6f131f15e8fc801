# SPDX-License-Identifier: Apache-2.0
from importlib.util import find_spec

missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
if missing:
    raise ImportError(f"Export needs {', '.join(missing)}: pip install 'mmrepmlp[export]'")

from .onnx import DYNAMIC_AXES, ExportError, OnnxReport, export_onnx  # noqa: E402
from .session import OnnxNetwork  # noqa: E402

__all__ = ["DYNAMIC_AXES", "ExportError", "OnnxNetwork", "OnnxReport", "export_onnx"]
