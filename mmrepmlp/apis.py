# SPDX-License-Identifier: Apache-2.0
"""Python API behind the command ``mmrepmlp``: operations on configs and checkpoints.

Names are imported on first use, so that unused packages need not be installed and cost no import time.
"""

from importlib import import_module

LOCATIONS = {
    "mmrepmlp.verbs.visualize_fc3": ("fc3_share", "visualize_fc3"),
    "mmrepmlp.verbs.benchmark.benchmark": ("benchmark",),
    "mmrepmlp.verbs.benchmark.report": ("BenchmarkReport",),
    "mmrepmlp.verbs.reparameterize.official": ("OfficialReport",),
    "mmrepmlp.verbs.reparameterize.reparameterize": ("ConversionError", "reparameterize_checkpoint"),
    "mmrepmlp.verbs.reparameterize.report": ("ConversionReport",),
    "mmrepmlp.verbs.deploy.deploy": ("DeploymentReport", "deploy_checkpoint"),
    "mmrepmlp.verbs.test.evaluate_deployment": ("evaluate_deployment",),
    "mmrepmlp.verbs.infer.infer": ("Inference", "infer"),
    "mmrepmlp.verbs.test.evaluate": ("evaluate",),
    "mmrepmlp.verbs.train.train": ("train",),
    "mmrepmlp.datasets": ("write_dataset",),
}
MODULE_OF = {name: module for module, names in LOCATIONS.items() for name in names}

__all__ = sorted(MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a name on first use (PEP 562)."""
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
