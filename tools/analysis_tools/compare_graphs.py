# SPDX-License-Identifier: Apache-2.0
"""Compare exported graphs of one model, e.g. float32 and int8: accuracy on the config's test set, size, latency."""

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction
from rich.console import Console

from mmrepmlp.apis.graphs import compare_graphs, table_of_graphs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("graphs", nargs="+", help="ONNX files of a model of this config")
    parser.add_argument("--work-dir", help="folder for logs (default: work_dirs/<name of the config>)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="settings to override, as key=value")
    args = parser.parse_args()
    names = [Path(path).stem for path in args.graphs]
    graphs = dict(zip(names if len(set(names)) == len(names) else args.graphs, args.graphs))
    try:
        measurements = compare_graphs(args.config, graphs, args.work_dir, args.cfg_options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    Console().print(table_of_graphs(measurements))


if __name__ == "__main__":
    main()
