# SPDX-License-Identifier: Apache-2.0
"""Packaging. requirements/ pins the versions of the reference environment; the ranges here are those supported."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "mmrepmlp/version.py").read_text())[1]
NEED_CLONE = ("setup_env.sh", "demo")  # of tools/: they install a clone, and write into it

# OpenMMLab's packages and the onedl ones have the same import names: an environment has either. Neither is required by
# the core, which would pull one of them over the other, or mmcv over mmcv-lite.
OPENMMLAB = ["mmengine>=0.10.4,<1", "mmcv>=2.0.0,<3", "setuptools<81"]  # whose pkg_resources MMEngine imports
ONEDL = ["onedl-mmengine>=0.10.12,<1", "onedl-mmcv>=2.3.6,<3"]
EXTRAS = {
    "cls": [*OPENMMLAB, "mmpretrain>=1.2.0,<2", "torchvision"],
    # mmseg imports ftfy and regex without declaring them; these mmseg and mmdet reject mmcv 2.2.
    "seg": [*OPENMMLAB, "mmsegmentation>=1.2.0,<2", "mmcv<2.2.0", "ftfy", "regex"],
    "det": [*OPENMMLAB, "mmdet>=3.3.0,<4", "mmcv<2.2.0", "pycocotools"],
    "onedl-cls": [*ONEDL, "onedl-mmpretrain>=1.3.6,<2", "torchvision"],
    "onedl-seg": [*ONEDL, "onedl-mmsegmentation>=1.4.2,<2"],
    # onedl-mmdetection imports imgaug without declaring it.
    "onedl-det": [*ONEDL, "onedl-mmdetection>=3.5.1,<4", "imgaug>=0.4"],
    "export": ["onnx>=1.16", "onnxscript>=0.1", "onnxruntime>=1.23"],
    "openvino": ["onnx>=1.16", "onnxscript>=0.1", "onnxruntime>=1.23", "openvino>=2026.4", "nncf>=3.4"],
    "prune": ["torch-pruning>=1.6", "scikit-learn>=1.3"],
    "docs": [
        "sphinx>=8.1",
        "myst-parser>=4",
        "furo>=2024.8.6",
        "sphinx-argparse-cli>=1.19",
        "sphinx-copybutton>=0.5.2",
    ],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "filelock>=3.12",
        "hypothesis>=6.100",
        "ruff>=0.6",
        "pre-commit>=3",
        "scikit-learn>=1.3",
        "timm>=1.0",
        "model-index>=0.1.11",
        # docs/tutorial_*.ipynb: written from the pages, and executed
        "jupytext>=1.16",
        "nbclient>=0.10",
        "ipykernel>=6",
        # make dist; older twines do not know the metadata of today's setuptools
        "build>=1",
        "twine>=6.1",
    ],
}


class BuildWithConfigs(build_py):
    """Copies the files that MIM and ``mmrepmlp::`` look up into mmrepmlp/.mim; links them in editable installs."""

    def run(self) -> None:
        super().run()
        editable = self.editable_mode
        target = Path(ROOT if editable else self.build_lib, "mmrepmlp", ".mim")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("configs", "tools", "model-index.yml"):
            source = ROOT / name
            if editable:
                (target / name).symlink_to(Path("..", "..", name))
            elif source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", *NEED_CLONE))
            else:
                shutil.copy(source, target)


setup(
    package_data={"mmrepmlp": ["py.typed"], "mmrepmlp.verbs.deploy": ["standalone/*.py"]},
    cmdclass=dict(build_py=BuildWithConfigs),
    name="mmrepmlp",
    version=VERSION,
    description="RepMLPNet, a re-parameterizable vision MLP, as a backbone for OpenMMLab",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="The mmrepmlp authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["RepMLPNet", "structural re-parameterization", "OpenMMLab", "pruning", "quantization"],
    packages=find_packages(include=["mmrepmlp", "mmrepmlp.*"]),
    python_requires=">=3.10",
    install_requires=["torch>=2.4", "safetensors>=0.4", "rich>=13"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mmrepmlp = mmrepmlp.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
