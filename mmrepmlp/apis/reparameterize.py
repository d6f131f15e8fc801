# SPDX-License-Identifier: Apache-2.0
"""From a trained checkpoint to one in deploy form that proves to be the same model."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from rich import box
from rich.table import Table
from torch import nn

from mmrepmlp.checkpoint import atomic_write, load_from_local, unwrap
from mmrepmlp.reparam import TOLERANCE, Difference, switch_to_deploy, verify_conversion
from mmrepmlp.version import __version__

from .config import read_config


class ConversionError(RuntimeError):
    """A conversion did not prove exact, or there was nothing to convert; nothing was written."""


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        checkpoint: The file in deploy form.
        config: The config that loads it.
        parameters: Number of parameters before and after.
        differences: How far the outputs are apart, in each precision.
    """

    checkpoint: Path
    config: Path
    parameters: tuple[int, int]
    differences: list[Difference]

    def table(self) -> Table:
        """The report to print."""
        table = Table(title=f"{self.checkpoint} in deploy form", title_justify="left", box=box.SIMPLE)
        for column in ("", "training form", "deploy form", "relative error", "tolerance"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("parameters", *(f"{count:,}" for count in self.parameters))
        for difference in self.differences:
            name = str(difference.dtype).removeprefix("torch.")
            table.add_row(f"outputs, {name}", "", "", f"{difference.relative:.1e}", f"{difference.tolerance:.0e}")
        return table


def reparameterize_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    overwrite: bool = False,
    tolerance: float = TOLERANCE[torch.float32],
) -> ConversionReport:
    """Convert a checkpoint to deploy form and write it beside a config that loads it.

    The converted model is compared with the original on random images, in float32 and float64, before anything is
    written.

    Args:
        config: Config of the model in training form: a classifier, segmentor or detector.
        checkpoint: Its trained checkpoint.
        out: File to write, e.g. ``deploy.pth``; the config takes the same name with ``.py``.
        overwrite: Whether existing files may be replaced. Default: False.
        tolerance: Largest accepted difference in float32, relative to an output's largest value. Default: 1e-5.

    Returns:
        What was done.

    Raises:
        FileExistsError: ``out`` or its config exists and ``overwrite`` is not set.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ValueError: The checkpoint does not belong to the config's model.
        ConversionError: The model has nothing to convert, or the outputs differ.
    """
    out, deploy_config = Path(out), Path(out).with_suffix(".py")
    for path in (out, deploy_config):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists and is kept. Name another file, or pass --overwrite to replace it.")
    cfg = read_config(config)
    source = load_from_local(checkpoint)
    model = build_model(cfg, unwrap(source))
    converted = switch_to_deploy(copy.deepcopy(model))
    if converted.state_dict().keys() == model.state_dict().keys():
        raise ConversionError(f"The model of {config} has nothing to convert, or is in deploy form already.")
    differences = prove_exact(model, tolerance)

    cfg.model.backbone.deploy = True
    meta = {**source.get("meta", {}), "cfg": cfg.pretty_text, "mmrepmlp_version": __version__}
    with atomic_write(deploy_config) as config_file, atomic_write(out) as checkpoint_file:  # both or neither
        config_file.write_text(cfg.pretty_text)
        torch.save({"meta": meta, "state_dict": converted.state_dict()}, checkpoint_file)
    counts = tuple(sum(p.numel() for p in m.parameters()) for m in (model, converted))
    return ConversionReport(out, deploy_config, counts, differences)


def build_model(cfg: Config, state: dict[str, torch.Tensor]) -> nn.Module:
    """Build a config's model with the weights of a state dict.

    Raises:
        ValueError: The state dict is not the model's.
    """
    cfg.model.backbone.pop("init_cfg", None)
    if "data_preprocessor" in cfg:  # where the runner would take it from
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint does not fit the config's model. {error}") from error
    return model.eval()


def prove_exact(model: nn.Module, tolerance: float) -> list[Difference]:
    """Convert a model and compare its outputs on random images.

    Raises:
        ConversionError: They differ by more than is accepted.
    """
    mean = getattr(model.data_preprocessor, "mean", None)
    side = getattr(model.backbone, "img_size", (224, 224))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3 if mean is None else len(mean), *side, generator=generator, dtype=torch.float64)
    accepted = {**TOLERANCE, torch.float32: tolerance}
    differences = verify_conversion(model, images, run=lambda m, x: m(x, mode="tensor"), tolerance=accepted)
    if all(difference.accepted for difference in differences):
        return differences
    figures = "; ".join(f"{d.dtype}: {d.relative:.1e} relative, accepted {d.tolerance:.0e}" for d in differences)
    exact = all(difference.accepted for difference in differences if difference.dtype is torch.float64)
    advice = " The conversion is exact but for float32's rounding; --tolerance accepts more of it." if exact else ""
    raise ConversionError(f"The outputs in deploy form differ: {figures}. Nothing was written.{advice}")
