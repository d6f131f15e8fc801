# SPDX-License-Identifier: Apache-2.0
"""Evaluate models on test sets, for configs of mmpretrain, mmsegmentation and mmdetection."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner
from torch import Tensor

from mmrepmlp.checkpoint import check_folder, save_checkpoint
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import framework_of, load_config, require
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.progress import show_progress
from mmrepmlp.verbs.runner import build_runner

from .metrics import numbers
from .tta import apply_tta

DTYPES = ("float32", "bfloat16")


class DumpPredictions(DumpResults):
    """MMEngine's :class:`DumpResults` without per-pixel scores, which would fill the disk."""

    def process(self, data_batch: dict, predictions: Sequence[dict]) -> None:
        """Add the predictions of a batch."""
        super().process(data_batch, [{key: p[key] for key in p if key != "seg_logits"} for p in predictions])


def evaluate(
    config: str | Path,
    checkpoint: str | Path | None = None,
    work_dir: str | None = None,
    out: str | None = None,
    deploy: bool = False,
    tta: bool = False,
    dtype: str = "float32",
    show_dir: str | Path | None = None,
    cfg_options: dict | None = None,
    launcher: str = "none",
    progress: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint or a deployed folder on a config's test set.

    Args:
        config: Path of the config file, or ``package::path``.
        checkpoint: Path of the checkpoint, or of a folder that :func:`deploy_checkpoint` wrote, which
            :func:`evaluate_deployment` evaluates. Default: the config's ``load_from``.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<config name>``.
        out: Pickle file to write the predictions to. Default: None.
        deploy: Whether to convert the model to deploy form first. Default: False.
        tta: Whether to use test-time augmentation: the config's ``tta_model`` and ``tta_pipeline``, or else each image
            and its mirror image. Default: False.
        dtype: Precision of backbone, neck and heads: ``float32``, or ``bfloat16``, which becomes float32 on a processor
            without instructions for it. Everything in between, such as NMS, stays in float32. Default: ``float32``.
        show_dir: Folder for an image of each prediction, drawn by the framework's visualization hook; mmsegmentation's
            writes to its subfolder ``vis_data/vis_image``. Default: None.
        cfg_options: Config settings to override, by dotted name. Default: None.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.
        progress: Whether to print a progress bar, metrics and warnings instead of the log, which then goes only to its
            file. Default: False.

    Returns:
        The metrics, by name.

    Raises:
        ValueError: The config has nothing to test or no checkpoint is given; an argument has another value than its
            choices, or does not apply to a deployed folder.
        ExplainedError: A neck or head does not fit the backbone, a dataset is missing, or with ``tta`` the predictions
            of the model cannot be merged.
        MMRepMLPError: The config has nothing to draw predictions with for ``show_dir``, or the environment of the
            launcher is incomplete.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
    if checkpoint is not None and Path(checkpoint).is_dir():
        if deploy or tta or dtype != "float32" or launcher != "none":
            raise ValueError(f"{checkpoint} is a deployed folder: deploy, tta, dtype and launcher do not apply to it.")
        # The packages that export needs are optional.
        from .evaluate_deployment import evaluate_deployment

        return evaluate_deployment(config, checkpoint, work_dir, cfg_options, out, show_dir, progress)
    cfg = load_test_config(config, cfg_options, work_dir, launcher, out, show_dir)
    if checkpoint is None and not cfg.get("load_from"):
        raise ValueError(f"No checkpoint is given, and {config} has none in load_from. Pass one.")
    cfg.load_from, cfg.resume = str(checkpoint or cfg.load_from), False
    if tta:
        apply_tta(cfg)
    hooks = {"SwitchToDeployHook": deploy, "Bfloat16Hook": dtype == "bfloat16"}
    added = [dict(type=f"mmrepmlp.{name}") for name, wanted in hooks.items() if wanted]
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), *added]
    with explained(cfg):
        return run_test(build_runner(cfg, progress), out)


def load_test_config(
    config: str | Path,
    cfg_options: dict | None,
    work_dir: str | None,
    launcher: str = "none",
    out: str | None = None,
    show_dir: str | Path | None = None,
) -> Config:
    """Read a config to test with; the arguments are those of :func:`evaluate`."""
    if out and not str(out).endswith((".pkl", ".pickle")):
        raise ValueError(f"out={str(out)!r}: expected a pickle file, .pkl or .pickle.")
    cfg = load_config(config, cfg_options, work_dir, launcher)
    require(cfg, "test_dataloader", "test_cfg", "test_evaluator")
    for folder in (Path(out).parent if out else None, show_dir):
        if folder is not None:  # they are written to at the end
            check_folder(folder)
    if show_dir:
        draw_into(cfg, str(Path(show_dir).absolute()), cfg_options or {})
    return cfg


def draw_into(cfg: Config, folder: str, cfg_options: Mapping) -> None:
    """Turn on the visualization hook of a config, as ``tools/test.py --show-dir`` of the frameworks does."""
    hook, scope = (cfg.get("default_hooks") or {}).get("visualization"), framework_of(cfg)
    switches = {
        "mmpretrain": dict(enable=True, out_dir=folder),
        "mmseg": dict(draw=True),  # into the folder of the visualizer
        "mmdet": dict(draw=True, test_out_dir=folder),
    }
    if not hook or not cfg.get("visualizer") or scope not in switches:
        raise MMRepMLPError(
            f"--show-dir: the config, of {scope}, has no visualizer or no default_hooks.visualization of "
            f"{' or '.join(switches)}. Set them, e.g. default_hooks.visualization.type=SegVisualizationHook."
        )
    hook.update(switches[scope])
    if "default_hooks.visualization.interval" not in cfg_options:
        hook.interval = 1
    # A new name, since the visualizer of an earlier run in this process has another folder and other classes.
    cfg.visualizer.update(name=f"{folder} {time.monotonic_ns()}", save_dir=folder)


def run_test(runner: Runner, out: str | None = None) -> dict[str, float]:
    """Run a runner's test, and write the predictions to a pickle file if ``out`` is set."""
    if out:
        runner.test_evaluator.metrics.append(DumpPredictions(out_file_path=out))
    with show_progress(runner):
        return runner.test()


def evaluate_weights(
    config: str | Path,
    state: Mapping[str, Tensor],
    work_dir: str | None = None,
    cfg_options: dict | None = None,
) -> dict[str, float]:
    """Evaluate a state dict that is in no file, e.g. averaged weights, and return the metrics that are numbers."""
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder, "weights.pth")
        save_checkpoint({"state_dict": state}, checkpoint)
        metrics = evaluate(config, checkpoint, work_dir, cfg_options=cfg_options, progress=True)
    return numbers(metrics)
