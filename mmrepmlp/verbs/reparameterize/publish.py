# SPDX-License-Identifier: Apache-2.0
"""Prepare a training checkpoint for publication, with a model index entry."""

import json
from dataclasses import dataclass
from pathlib import Path

import mmengine
from mmengine.config import Config
from torch import nn

from mmrepmlp.checkpoint import atomic_write, check_overwrite, load_from_local, meta_of, save_hashed, unwrap
from mmrepmlp.models import ACBConv2d, DBBConv2d, RepMLPResNet, RepOptVGG
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.forward import count_macs
from mmrepmlp.verbs.model import build_model
from mmrepmlp.version import __version__

# By what only their models have.
COLLECTIONS = {RepMLPResNet: "RepMLP-ResNet", RepOptVGG: "RepOpt-VGG", DBBConv2d: "DBB", ACBConv2d: "ACNet"}
TASKS = dict(mmpretrain="Image Classification", mmseg="Semantic Segmentation", mmdet="Object Detection")


@dataclass
class Publication:
    """Files written by :func:`publish_checkpoint`.

    Attributes:
        checkpoint: The file to upload, named by its hash.
        metafile: Its model index entry.
    """

    checkpoint: Path
    metafile: Path


def publish_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    report: str | Path | None = None,
    ema: bool = False,
    allow_unsafe: bool = False,
    overwrite: bool = False,
) -> Publication:
    """Reduce a checkpoint to the model's weights, name it by its hash, and write a model index entry.

    Args:
        config: Config of the model.
        checkpoint: Checkpoint of the model. Both may be in training form or in deploy form.
        out: Base name of the files: ``name.pth`` gives ``name-0123abcd.pth`` and ``name-0123abcd.yml``.
        report: JSON report of a conversion, whose metrics are added to the entry. Default: the one next to the
            checkpoint, if it exists.
        ema: Whether to publish the weights averaged over the training. Default: False.
        allow_unsafe: Whether to execute code in the checkpoint. Default: False.
        overwrite: Whether existing files may be replaced. Default: False.

    Returns:
        Paths of the files.

    Raises:
        FileExistsError: The entry exists and ``overwrite`` is not set.
        CheckpointError: The checkpoint cannot be read, or contains code.
        ValueError: The checkpoint does not belong to the config's model, or the report to the checkpoint.
    """
    out = Path(out)
    cfg = read_config(config)
    metrics = read_metrics(report, Path(checkpoint))
    source = load_from_local(checkpoint, allow_unsafe=allow_unsafe)
    state = unwrap(source, ema)
    model = build_model(cfg, state)
    meta = {"mmrepmlp_version": __version__, **meta_of(source)}
    entry = {
        "Name": out.stem,
        "In Collection": collection_of(model),
        "Config": str(config),
        "Metadata": {"Parameters": sum(p.numel() for p in model.parameters()), "FLOPs": count_macs(model)},
    }
    if metrics:
        entry["Results"] = [describe_result(cfg, metrics)]
    published = save_hashed(
        {"meta": meta, "state_dict": state},
        out,
        check=lambda _, final: check_overwrite(final.with_suffix(".yml"), overwrite=overwrite),
    )
    entry["Weights"] = published.name
    metafile = published.with_suffix(".yml")
    with atomic_write(metafile, named_after=out.with_suffix(metafile.suffix)) as file:
        file.write_text(mmengine.dump({"Models": [entry]}, file_format="yaml", sort_keys=False))
    return Publication(published, metafile)


def collection_of(model: nn.Module) -> str:
    """The collection of the model index that a model belongs to."""
    modules = list(model.modules())
    found = (name for kind, name in COLLECTIONS.items() if any(isinstance(module, kind) for module in modules))
    return next(found, "RepMLPNet")


def read_metrics(report: str | Path | None, checkpoint: Path) -> dict[str, float]:
    """The metrics of a checkpoint, in either form, from the report of a conversion.

    Raises:
        ValueError: The report belongs to another checkpoint.
    """
    default = checkpoint.with_suffix(".json")
    if report is None and not default.is_file():
        return {}
    content = json.loads(Path(report or default).read_text())
    forms = [Path(content[key]).name for key in ("source", "checkpoint")]
    if checkpoint.name not in forms:
        raise ValueError(
            f"{report or default} belongs to {' and '.join(forms)}, not to {checkpoint.name}. Pass the report that "
            "tools/reparameterize.py wrote for this checkpoint."
        )
    return {name: values[forms.index(checkpoint.name)] for name, values in content["metrics"].items()}


def describe_result(cfg: Config, metrics: dict[str, float]) -> dict:
    """The entry of a model index for metrics on a config's test set."""
    dataset = cfg.test_dataloader.dataset
    name = dataset.get("data_root") or dataset.type
    return {
        "Task": TASKS.get(cfg.get("default_scope"), "Other"),
        "Dataset": Path(name).name,
        "Metrics": {metric: round(value, 4) for metric, value in metrics.items()},
    }
