# SPDX-License-Identifier: Apache-2.0
"""Leave out what frameworks do again and again, which makes no difference to a test: half of the time of some."""

import functools
import gc
import importlib.util
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import mmengine.config.config
import mmengine.config.utils
import mmengine.dataset
import torch


def spare_mmengine() -> None:
    """Leave out repetitions of MMEngine's.

    - Each data set collects garbage, which looks at every object of all modules.
    - A config is formatted each time that it is written, logged or put into a checkpoint.
    - To find a config of an installed package, the metadata of all packages are read, and all metafiles of its own.
    """
    mmengine.dataset.base_dataset.gc = SimpleNamespace(collect=lambda: None)
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
    mmengine.config.config.is_installed = if_found(mmengine.config.config.is_installed)


def if_found(is_installed: Callable[[str], bool]) -> Callable[[str], bool]:
    """Remember which packages are installed, not which are missing."""
    found = set()

    def remember(package: str) -> bool:
        if package not in found and is_installed(package):
            found.add(package)
        return package in found

    return remember


def spare_exporter() -> None:
    """Leave out repetitions of torch's exporter.

    - It parses the source of each function that writes an operator.
    - It looks through all of torch's operators for those that it may take apart.
    - Its optimizer tries each rule on each node, whatever the operator that the rule is for.
    """
    if not hasattr(torch.export.Dim, "DYNAMIC") or not importlib.util.find_spec("onnx_ir"):  # what it needs
        return
    from onnxscript.rewriter._matcher import SimplePatternMatcher
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    if hasattr(utils, "_materialize_cpp_cia_ops"):  # not in every torch
        utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
    SimplePatternMatcher.match = match_operator(SimplePatternMatcher.match)


def match_operator(match: Callable) -> Callable:
    """Match a rule of the exporter's optimizer with a node only where the operator is the same."""
    from onnxscript.rewriter._basics import MatchResult

    def match_same(self, model, graph, node, **options):
        operator = self.pattern.output_nodes[0].op_identifier()
        if operator in (None, node.op_identifier()):
            return match(self, model, graph, node, **options)
        return MatchResult().fail("another operator")

    return match_same


def spare_garbage(*modules: ModuleType) -> None:
    """Leave out of the search for garbage what is imported by now, and modules' own calls for one.

    Python searches every few seconds, a tenth of the time.
    """
    for module in modules:
        module.gc = SimpleNamespace(collect=lambda: None)
    gc.freeze()
    gc.set_threshold(20_000, 10, 50)
