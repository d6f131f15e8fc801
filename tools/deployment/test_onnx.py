# SPDX-License-Identifier: Apache-2.0
"""Evaluate an exported classifier or segmentor on a config's test set, computed by ONNX Runtime."""

import argparse
import sys

from mmengine.config import DictAction

from mmrepmlp.apis.onnx import test_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("onnx_file", help="what export_onnx.py wrote for a model of this config")
    parser.add_argument("--work-dir", help="folder for logs (default: work_dirs/<name of the config>)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="settings to override, as key=value")
    try:
        test_onnx(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
