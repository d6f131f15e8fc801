# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of a training to one that others download, and what a model index says of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import mmengine
from mmengine.config import Config

from mmrepmlp.apis.config import read_config
from mmrepmlp.apis.model import build_model, count_macs
from mmrepmlp.checkpoint import atomic_write, check_overwrite, load_from_local, save_hashed, unwrap
from mmrepmlp.version import __version__

TASKS = dict(mmpretrain="Image Classification", mmseg="Semantic Segmentation", mmdet="Object Detection")


@dataclass
class Publication:
    """What was written.

    Attributes:
        checkpoint: The file to upload, whose name ends in its hash.
        metafile: A model index entry for it.
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
    """Strip a checkpoint to what a model needs, name it by its hash, and write a model index entry for it.

    Args:
        config: Config of the model.
        checkpoint: Its checkpoint; config and checkpoint may be those of either form.
        out: What to name the files after: ``name.pth`` gives ``name-0123abcd.pth`` and ``name-0123abcd.yml``.
        report: The JSON report of a conversion, whose metrics go into the entry. Default: the one beside the
            checkpoint, if there is one.
        ema: Whether to publish the weights averaged over the training. Default: False.
        allow_unsafe: Whether to run code that the checkpoint holds. Default: False.
        overwrite: Whether existing files may be replaced. Default: False.

    Returns:
        What was written.

    Raises:
        FileExistsError: The entry exists and ``overwrite`` is not set.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: The checkpoint does not belong to the config's model, or the report to the checkpoint.
    """
    out = Path(out)
    cfg = read_config(config)
    metrics = read_metrics(report, Path(checkpoint))
    source = load_from_local(checkpoint, allow_unsafe=allow_unsafe)
    state = unwrap(source, ema)
    model = build_model(cfg, state)
    meta = {"mmrepmlp_version": __version__, **source.get("meta", {})}
    entry = {
        "Name": out.stem,
        "In Collection": "RepMLPNet",
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
    with atomic_write(metafile) as file:
        file.write_text(mmengine.dump({"Models": [entry]}, file_format="yaml", sort_keys=False))
    return Publication(published, metafile)


def read_metrics(report: str | Path | None, checkpoint: Path) -> dict[str, float]:
    """The metrics that a conversion's report has for a checkpoint, in whichever form it is.

    Raises:
        ValueError: The report is of another checkpoint.
    """
    beside = checkpoint.with_suffix(".json")
    if report is None and not beside.is_file():
        return {}
    content = json.loads(Path(report or beside).read_text())
    forms = [Path(content[key]).name for key in ("source", "checkpoint")]
    if checkpoint.name not in forms:
        raise ValueError(
            f"{report or beside} is of {' and '.join(forms)}, not of {checkpoint.name}. Name the report that "
            "tools/reparameterize.py wrote for this checkpoint."
        )
    return {name: values[forms.index(checkpoint.name)] for name, values in content["metrics"].items()}


def describe_result(cfg: Config, metrics: dict[str, float]) -> dict:
    """What a model index says of metrics on a config's test set."""
    dataset = cfg.test_dataloader.dataset
    name = dataset.get("data_root") or dataset.type
    return {
        "Task": TASKS.get(cfg.get("default_scope"), "Other"),
        "Dataset": Path(name).name,
        "Metrics": {metric: round(value, 4) for metric, value in metrics.items()},
    }
