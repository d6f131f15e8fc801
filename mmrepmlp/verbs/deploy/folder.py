# SPDX-License-Identifier: Apache-2.0
"""Read and write deployed folders: a graph, a description of its inputs and outputs, and a program that runs it."""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from mmrepmlp.checkpoint import file_hash
from mmrepmlp.errors import MMRepMLPError

FORMAT = 1
SETTINGS, WEIGHTS = "deploy.json", "head.safetensors"
PROGRAM = Path(__file__).parent / "standalone/run.py"
GRAPHS = {"openvino": "model.xml", "onnxruntime": "model.onnx"}
PRECISIONS = {"openvino": ("float32", "bfloat16", "int8"), "onnxruntime": ("float32", "int8")}
sha256 = partial(file_hash, digits=64)  # the full hash


class DeploymentError(MMRepMLPError):
    """Raised if a network cannot be deployed as requested, or a folder was changed; nothing was written."""


@dataclass
class Deployment:
    """A deployed network.

    Attributes:
        folder: Its folder.
        settings: Content of ``deploy.json``.
    """

    folder: Path
    settings: dict

    @classmethod
    def read(cls, folder: str | Path) -> "Deployment":
        """Read a deployed folder, and check that its files are unchanged.

        Raises:
            FileNotFoundError: The folder is not a deployed network.
            DeploymentError: A file was changed, or the folder has a newer format.
        """
        path = Path(folder) / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: {folder} is not a deployed network. Make one with mmrepmlp deploy."
            )
        deployment = cls(Path(folder), json.loads(path.read_text(encoding="utf-8")))
        if deployment.settings["format"] > FORMAT:
            raise DeploymentError(f"{path} has format {deployment.settings['format']}; update mmrepmlp to read it.")
        for name, digest in deployment.settings["files"].items():
            if not (path.parent / name).is_file() or sha256(path.parent / name) != digest:
                raise DeploymentError(f"{path.parent / name} is not the file that was deployed. Deploy it again.")
        return deployment

    def write(self) -> None:
        """Write ``deploy.json``, the last file, by which :meth:`read` recognizes a deployed network."""
        (self.folder / SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")

    @property
    def megabytes(self) -> float:
        """Size of the graph and the weights, in units of 1e6 bytes."""
        sizes = {name: (self.folder / name).stat().st_size for name in self.settings["files"]}
        return sum(size for name, size in sizes.items() if not name.endswith((".py", ".txt"))) / 1e6

    def load(self) -> nn.Module:
        """Load the graph as a module that maps images (N, H, W, C) to its outputs."""
        return load_graph(self.folder / self.settings["graph"], self.settings["runtime"], self.settings["precision"])


def check_runtime(runtime: str, precision: str) -> None:
    """Check that a runtime supports a precision, and that its packages can be imported.

    Raises:
        ValueError: The runtime is unknown or does not support the precision.
        ImportError: A package is not installed.
    """
    if precision not in PRECISIONS.get(runtime, ()):
        known = "; ".join(f"{name} in {', '.join(precisions)}" for name, precisions in PRECISIONS.items())
        raise ValueError(f"runtime={runtime!r}, precision={precision!r}: expected one of {known}.")
    if runtime == "openvino":
        import mmrepmlp.export.openvino
    if precision == "int8":
        import mmrepmlp.export.post_training  # noqa: F401


def load_graph(graph: object, runtime: str, precision: str) -> nn.Module:
    """Load a graph, as a file or as the runtime's model object, into its runtime."""
    if runtime == "openvino":
        from mmrepmlp.export.openvino import OpenVinoNetwork

        return OpenVinoNetwork(graph, precision)
    from mmrepmlp.export import OnnxNetwork

    return OnnxNetwork(graph)


def write_program(folder: Path, runtime: str, steps: list[dict]) -> None:
    """Write the program that runs the network, and its requirements.txt.

    It requires the installed version of the runtime, and the installed major versions of packages that prepare images.
    """
    shutil.copyfile(PROGRAM, folder / PROGRAM.name)
    packages = {"numpy": np.__version__, "opencv-python-headless": cv2.__version__}
    if any(step.get("backend") == "pillow" for step in steps):
        packages["pillow"] = version("pillow")
    lines = [f"{name}>={installed.partition('.')[0]}.0" for name, installed in packages.items()]
    (folder / "requirements.txt").write_text("\n".join([f"{runtime}=={version(runtime)}", *lines]) + "\n")
