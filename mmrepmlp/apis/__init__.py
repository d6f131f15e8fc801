# SPDX-License-Identifier: Apache-2.0
"""Operations on configs and checkpoints: the Python API behind the tools.

Names are imported on first use, so that unused packages need not be installed and cost no import time.
"""

from importlib import import_module

LOCATIONS = {
    "mmrepmlp.apis.analysis.ablate": ("Ablation", "ablate"),
    "mmrepmlp.apis.analysis.compare_forms": ("Comparison", "compare_forms"),
    "mmrepmlp.apis.analysis.compare_trainings": ("TrainingComparison", "compare_trainings"),
    "mmrepmlp.apis.analysis.draw_predictions": ("draw_predictions",),
    "mmrepmlp.apis.analysis.sweep.sweep_configs": ("Sweep", "sweep_configs"),
    "mmrepmlp.apis.analysis.visualize_fc3": ("fc3_share", "visualize_fc3"),
    "mmrepmlp.apis.benchmarks.breakdown": ("benchmark_breakdown",),
    "mmrepmlp.apis.benchmarks.compare": ("benchmark_repmlpnet",),
    "mmrepmlp.apis.benchmarks.compare_runtimes": ("benchmark_runtimes",),
    "mmrepmlp.apis.benchmarks.readme_table": ("speed_table",),
    "mmrepmlp.apis.benchmarks.sizes": ("benchmark_sizes",),
    "mmrepmlp.apis.conversion.official": ("mmrepmlp_to_official", "official_to_mmrepmlp"),
    "mmrepmlp.apis.conversion.publish": ("Publication", "publish_checkpoint"),
    "mmrepmlp.apis.conversion.reparameterize": ("ConversionError", "reparameterize_checkpoint"),
    "mmrepmlp.apis.conversion.report": ("ConversionReport",),
    "mmrepmlp.apis.deployment.accuracy_table": ("accuracy_table",),
    "mmrepmlp.apis.deployment.compare_deployments": ("DeploymentComparison", "compare_deployments"),
    "mmrepmlp.apis.deployment.deploy": ("DeploymentReport", "deploy_checkpoint"),
    "mmrepmlp.apis.deployment.evaluate_deployment": ("evaluate_deployment",),
    "mmrepmlp.apis.deployment.export_checkpoint": ("export_checkpoint",),
    "mmrepmlp.apis.inference.infer": ("Inference", "infer"),
    "mmrepmlp.apis.runs.evaluate": ("evaluate",),
    "mmrepmlp.apis.runs.train": ("train",),
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
