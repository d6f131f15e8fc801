# SPDX-License-Identifier: Apache-2.0
"""Check that MMEngine and mmcv are installed, in versions that mmrepmlp was tested with."""

from importlib import import_module
from importlib.util import find_spec

# The lowest version, and the one to stay below. Open-mmlab's packages and onedl's have the same import names.
TESTED = {"mmengine": ("0.10.4", "1.0.0"), "mmcv": ("2.0.0", "3.0.0")}


def check_frameworks() -> None:
    """Check that MMEngine and mmcv are installed, in versions that were tested.

    Raises:
        ImportError: One of them is missing, or has another version.
    """
    missing = [name for name in TESTED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"mmrepmlp needs {' and '.join(missing)}: pip install 'mmrepmlp[cls]' (or seg, det) installs open-mmlab's "
            "packages, pip install 'mmrepmlp[onedl-cls]' (or onedl-seg, onedl-det) those maintained by onedl."
        )
    for name, (lowest, below) in TESTED.items():
        version = import_module(name).__version__
        digits = import_module("mmengine.utils").digit_version
        if not digits(lowest) <= digits(version) < digits(below):
            raise ImportError(
                f"{name} {version} is installed; mmrepmlp works with {lowest} up to, but not including, {below}."
            )
