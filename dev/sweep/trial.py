# SPDX-License-Identifier: Apache-2.0
"""One config with the backbone swapped: does it train, convert and export as the config's own backbone does."""

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.export import ExportError
from mmrepmlp.reparam import Difference, compare_outputs, switch_to_deploy
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.deploy.deploy import deploy_checkpoint
from mmrepmlp.verbs.model import build_model, build_untrained, image_channels, iter_dicts
from mmrepmlp.verbs.reparameterize.reparameterize import reparameterize_checkpoint

from .families import config_root, iter_configs, random_squares, swap_backbone

SIDES = (128, 224, 512)  # of the images in pixels; the first that the config's own backbone takes
CANDIDATES = 3  # configs of a family to try until one works with its own backbone
STEPS = ("control", "train", "convert", "export")


@dataclass
class Trial:
    """What became of one family of configs.

    Attributes:
        package: Package of the config.
        family: Its folder.
        config: The config, ``package::path``.
        control: Whether the config's own backbone builds, predicts on a random image and gives a loss.
        train: Whether the swapped one gives a loss and gradients.
        convert: Whether the conversion proves exact, and the written config and checkpoint predict the same.
        export: ``whole`` where the ONNX graph of the whole model computes the same, ``maps`` where that of the backbone
            does.
        error: Largest relative difference of the maps in the written file.
        reason: Why the first step that did not pass did not.
    """

    package: str
    family: str
    config: str = ""
    control: str = "-"
    train: str = "-"
    convert: str = "-"
    export: str = "-"
    error: str = ""
    reason: str = ""


def run_trial(package: str, family: str, files: Sequence[Path], folder: Path) -> Trial:
    """Try a family; what fails is noted and ends the trial."""
    trial = Trial(package, family)
    step = STEPS[0]
    try:
        cfg, maps, side = find_control(trial, files)
        trial.control, step = "pass", "train"
        swap_backbone(cfg, maps, side, lambda cfg: run_training_step(cfg, side))
        cfg.dump(str(folder / "config.py"))
        model = run_training_step(cfg, side)
        trial.train, step = "pass", "convert"
        save_checkpoint({"state_dict": model.state_dict()}, folder / "trained.pth")
        trial.error = f"{run_conversion(folder, model, side):.1e}"
        trial.convert, step = "pass", "export"
        trial.export = run_export(folder, model)
    except Exception as error:
        setattr(trial, step, "fail")
        text = re.sub(r"(?<![\w.])/\S+/", "", " ".join(str(error).split()))  # without folders of this machine
        trial.reason = f"{step}: {type(error).__name__}: {text}"[:200]
    return trial


def find_control(trial: Trial, files: Sequence[Path]) -> tuple[Config, list[Tensor], int]:
    """The first config of a family that works with its own backbone, its maps, and the side of the image.

    Raises:
        Exception: Of the framework, on the first config, where none of those tried works.
    """
    first_error = ValueError("no config of this family has a model with a backbone of its own")
    for number, (file, cfg) in enumerate(itertools.islice(iter_configs(trial.package, files), CANDIDATES)):
        config = f"{trial.package}::{file.relative_to(config_root(trial.package))}"
        try:
            model, maps, side = run_control(cfg)
            with torch.no_grad():
                compute_loss(model.train(), cfg, side)
        except Exception as error:
            if number == 0:
                trial.config, first_error = config, error
        else:
            trial.config = config
            return cfg, maps, side
    raise first_error


def run_control(cfg: Config) -> tuple[nn.Module, list[Tensor], int]:
    """Build a config's model and predict; return it, the maps of its backbone, and the side of the image."""
    model = build_untrained(cfg).eval()
    model.init_weights()
    maps: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: object) -> None:
        maps[:] = output if isinstance(output, (list, tuple)) else [output]

    handle = model.backbone.register_forward_hook(keep)
    side = find_side(model)
    handle.remove()  # in training a backbone may give others
    return model, maps, side


def find_side(model: nn.Module) -> int:
    """The side of the first images that a model takes.

    Raises:
        Exception: Of the framework, where it takes none.
    """
    for side in SIDES[:-1]:
        with suppress(AssertionError, RuntimeError, ValueError):
            predict(model, side)
            return side
    predict(model, SIDES[-1])
    return SIDES[-1]


@torch.no_grad()
def predict(model: nn.Module, side: int) -> object:
    """Predictions on a random image, as nested dicts of tensors."""
    images = random_squares(1, channels_of(model), side).to(next(model.parameters()))
    torch.manual_seed(0)
    return to_dicts(model(images, make_samples(model, images), mode="predict"))


def to_dicts(value: object) -> object:
    """Samples as nested dicts and lists."""
    if isinstance(value, BaseDataElement):
        return {key: to_dicts(part) for key, part in value.items() if not key.startswith("gt_")}
    if isinstance(value, Mapping):
        return {key: to_dicts(part) for key, part in value.items()}
    return [to_dicts(part) for part in value] if isinstance(value, (list, tuple)) else value


def run_training_step(cfg: Config, side: int) -> nn.Module:
    """Loss and gradients on two random images; return the model in eval mode.

    Raises:
        RuntimeError: The loss is not finite, or no gradient reaches the backbone.
    """
    torch.manual_seed(0)
    model = build_untrained(cfg)
    model.init_weights()
    loss = compute_loss(model.train(), cfg, side)
    loss.backward()
    if not loss.isfinite() or all(p.grad is None for p in model.backbone.parameters()):
        raise RuntimeError(f"loss {loss.item()}, without gradients in the backbone or not finite")
    return model.eval()


def compute_loss(model: nn.Module, cfg: Config, side: int) -> Tensor:
    """The loss on two random images."""
    for counter in ("iter", "epoch"):  # which a runner sets, and some models read
        MessageHub.get_current_instance().update_info(counter, 0)
    loads_masks = any(part.get("with_mask") for part in iter_dicts(cfg.get("train_dataloader")))
    images, samples = make_batch(model, side, loads_masks)
    loss, _ = model.parse_losses(model(images, samples, mode="loss"))
    return loss


def channels_of(model: nn.Module) -> int:
    """Number of image channels; YOLOX has a layer in front of its first convolution that makes four of each."""
    return 3 if any(type(module).__name__ == "Focus" for module in model.modules()) else image_channels(model)


def make_samples(model: nn.Module, images: Tensor) -> list[BaseDataElement] | None:
    """Samples as the model's framework makes them for predictions; None if it needs none."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    size = tuple(images.shape[-2:])
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    meta.update(scale_factor=(1.0, 1.0), flip=False, flip_direction=None, border=np.array([0, size[0], 0, size[1]]))
    if "mmseg" in packages:
        from mmseg.structures import SegDataSample as Sample
    elif "mmdet" in packages:
        from mmdet.structures import DetDataSample as Sample
    else:
        return None
    return [Sample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]


def make_batch(model: nn.Module, side: int, with_mask: bool) -> tuple[Tensor, list[BaseDataElement]]:
    """Two random images with annotations, as the model's framework makes them; boxes with or without masks."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    images = random_squares(2, channels_of(model), side)
    if "mmdet" in packages:
        from mmdet.testing import demo_mm_inputs

        shape = tuple(images.shape[1:])
        data = demo_mm_inputs(2, shape, num_items=[4, 4], num_classes=2, with_mask=with_mask, with_semantic=True)
        data = model.data_preprocessor(data, True)
        for sample in data["data_samples"]:
            sample.gt_instances.labels.zero_()  # the class that every head has
        return data["inputs"], data["data_samples"]
    if "mmseg" in packages:
        samples = make_samples(model, images)
        for sample in samples:
            labels = torch.randint(0, 2, (1, *images.shape[2:]))
            sample.gt_sem_seg = PixelData(data=labels)
            sample.gt_edge_map = PixelData(data=labels)
        return images, samples
    from mmpretrain.structures import DataSample

    return images, [DataSample(metainfo=dict(num_classes=1000)).set_gt_label([label]) for label in range(2)]


def run_conversion(folder: Path, model: nn.Module, side: int) -> float:
    """Convert the checkpoint; compare predictions of what is built from the files; return the largest difference.

    Raises:
        RuntimeError: The predictions differ.
    """
    report = reparameterize_checkpoint(folder / "config.py", folder / "trained.pth", folder / "deploy.pth")
    deployed = build_model(read_config(report.config), load_from_local(report.checkpoint)["state_dict"])
    whole = [d for d in report.differences if not d.required]
    same_scores = whole and all(d.within_tolerance for d in whole)
    worst = compare_predictions(model, deployed, side, 1e-3)
    if worst and not worst.accepted and not same_scores:  # where rounding decides, of two equal scores for example
        exact = copy.deepcopy(model).double()
        worst = compare_predictions(exact, switch_to_deploy(copy.deepcopy(exact)), side, 1e-6)
        if not worst.accepted:
            raise RuntimeError(f"predictions differ by {worst.relative:.1e} relative in {worst.output}")
    return max(d.relative for d in report.differences if d.required and d.dtype is torch.float32)


def compare_predictions(before: nn.Module, after: nn.Module, side: int, tolerance: float) -> Difference | None:
    """The largest difference of predictions; None if there are none."""
    differences = compare_outputs(predict(before, side), predict(after, side), torch.float32, tolerance)
    return max(differences, key=lambda d: d.relative, default=None)


def run_export(folder: Path, model: nn.Module) -> str:
    """Export the checkpoint: a classifier or segmentor as a whole, where that is possible, else the backbone."""
    paths = [folder / name for name in ("config.py", "trained.pth", "model.onnx")]
    if any(cls.__name__ in ("ImageClassifier", "EncoderDecoder") for cls in type(model).__mro__):
        with suppress(ExportError):
            deploy_checkpoint(*paths, raw=True)
            return "whole"
    deploy_checkpoint(*paths, part="backbone", raw=True)
    return "maps"
