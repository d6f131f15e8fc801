# SPDX-License-Identifier: Apache-2.0
"""Evaluation, for configs of mmpretrain, mmsegmentation and mmdetection alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.evaluator import DumpResults
from torch import Tensor

from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.verbs.config import load_config, require
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.runner import build_runner

from .tta import apply_tta

DTYPES = ("float32", "bfloat16")


class DumpPredictions(DumpResults):
    """MMEngine's dump of predictions, without per-pixel scores, which would fill the disk."""

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
    cfg_options: dict | None = None,
    launcher: str = "none",
    progress: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set.

    Args:
        config: Path of the config file, or ``package::path``.
        checkpoint: Path of the checkpoint. Default: the config's ``load_from``.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        out: Pickle file for the predictions. Default: None.
        deploy: Whether to convert the model to deploy form first. Default: False.
        tta: Whether to merge the predictions of augmented images, by the config's ``tta_model`` and ``tta_pipeline``,
            or of each image and its mirror image. Default: False.
        dtype: Precision of backbone, neck and heads: ``float32`` or ``bfloat16``; the latter for processors with
            instructions for it. What they are joined by, such as NMS, stays in float32. Default: ``float32``.
        cfg_options: Settings to override, by dotted names. Default: None.
        launcher: Job launcher: none, pytorch, slurm or mpi. Default: none.
        progress: Whether the terminal gets a progress bar, the metrics and warnings instead of the log, which its file
            has in full. Default: False.

    Returns:
        The metrics.

    Raises:
        ValueError: The config sets nothing to test, no checkpoint is given, or an argument is none of its choices.
        ExplainedError: A neck or head does not fit the backbone, a dataset is not there, or with ``tta`` the
            predictions of the model cannot be merged.
    """
    if out and not str(out).endswith((".pkl", ".pickle")):
        raise ValueError(f"out={str(out)!r}: predictions are written as a pickle file, .pkl or .pickle.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
    cfg = load_config(config, cfg_options, work_dir, launcher)
    require(cfg, "test_dataloader", "test_cfg", "test_evaluator")
    if checkpoint is None and not cfg.get("load_from"):
        raise ValueError(f"No checkpoint is given, and {config} has none in load_from. Pass one.")
    cfg.load_from, cfg.resume = str(checkpoint or cfg.load_from), False
    if tta:
        apply_tta(cfg)
    hooks = {"SwitchToDeployHook": deploy, "Bfloat16Hook": dtype == "bfloat16"}
    added = [dict(type=f"mmrepmlp.{name}") for name, wanted in hooks.items() if wanted]
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), *added]
    with explained(cfg):
        runner = build_runner(cfg, progress)
        if out:
            runner.test_evaluator.metrics.append(DumpPredictions(out_file_path=out))
        return runner.test()


def evaluate_weights(
    config: str | Path,
    state: Mapping[str, Tensor],
    work_dir: str | None = None,
    cfg_options: dict | None = None,
) -> dict[str, float]:
    """Evaluate weights that are in no file, e.g. averaged ones.

    Args:
        config: Path of the config file, or ``package::path``.
        state: The weights, by name.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.

    Returns:
        The metrics.
    """
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder, "weights.pth")
        save_checkpoint({"state_dict": dict(state)}, checkpoint)
        metrics = evaluate(config, checkpoint, work_dir, cfg_options=cfg_options, progress=True)
    return {name: float(value) for name, value in metrics.items()}
