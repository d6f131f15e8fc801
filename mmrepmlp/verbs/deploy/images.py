# SPDX-License-Identifier: Apache-2.0
"""Read images of a config's datasets in the form that a deployed graph takes."""

import copy
from collections.abc import Sequence

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from mmrepmlp.export.normalization import IMAGE_TYPES
from mmrepmlp.verbs.config import innermost_dataset
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.model import iter_dicts

from .folder import DeploymentError

SAMPLES = 64  # images to compare predictions on


def dataset_images(cfg: Config, split: str, number: int) -> list[Tensor]:
    """Draw images of a dataset at random with a fixed seed, transformed by the test pipeline but not normalized.

    Args:
        cfg: The config.
        split: ``train``, ``val`` or ``test``.
        number: Number of images, or all if there are fewer.

    Returns:
        Images (1, H, W, C), uint8 or uint16.

    Raises:
        ValueError: The config has no such dataset, or the dataset is empty.
        ExplainedError: The dataset is missing.
        DeploymentError: Images have another type.
    """
    dataloader = cfg.get(f"{split}_dataloader")
    if not dataloader:
        raise ValueError(f"The config has no {split}_dataloader to read images from.")
    dataset = copy.deepcopy(dataloader["dataset"])
    pipeline = copy.deepcopy(innermost_dataset(cfg).get("pipeline") or [])
    for step in pipeline:  # keep the dtype of the file
        step.pop("to_float32", None)
    for part in iter_dicts(dataset):
        if "pipeline" in part:
            part["pipeline"] = pipeline
    loader = ConfigDict(
        dataset=dataset,
        sampler=dict(type="DefaultSampler", shuffle=True),
        collate_fn=dict(type="pseudo_collate"),
        batch_size=1,
        num_workers=0,
    )
    images = []
    with explained(cfg), DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        samples = Runner.build_dataloader(loader, seed=0)
        total = min(number, len(samples))
        console = Console(stderr=True)
        for _, data in zip(range(total), track(samples, f"{split} images", total, console=console, transient=True)):
            image = torch.as_tensor(data["inputs"][0])
            if image.dtype not in IMAGE_TYPES:
                name = str(image.dtype).removeprefix("torch.")
                raise DeploymentError(
                    f"Images of the {split} set are {name}, from {image.min():.6g} to {image.max():.6g}; a deployed "
                    "graph takes uint8 or uint16, and normalizes as the data preprocessor does. Use mmrepmlp deploy "
                    "--raw to export a graph that takes preprocessed images."
                )
            images.append(image.permute(1, 2, 0)[None].contiguous())
    if not images:
        raise ValueError(f"The config's {split} set has no images.")
    return images


def sample_images(cfg: Config) -> tuple[list[Tensor], str]:
    """Read images of the test set, or else of the training set; return them with a description of their origin.

    The list is empty if neither can be read.

    Raises:
        DeploymentError: The images are neither uint8 nor uint16.
    """
    for split, name in (("test", "the test set"), ("train", "the training set")):
        if cfg.get(f"{split}_dataloader"):
            try:
                found = dataset_images(cfg, split, SAMPLES)
            except DeploymentError:
                raise
            except Exception:  # a dataset may raise anything if its data are not on this machine
                continue
            largest = max((image.dtype for image in found), key=lambda dtype: torch.iinfo(dtype).max)
            return [image.to(largest) for image in found], f"{len(found)} images of {name}"
    return [], "random images"


def fit(image: Tensor, sides: Sequence[int | None]) -> Tensor:
    """Crop a random window of the size that a graph takes from an image, which is enlarged first if it is smaller.

    Args:
        image: Image (1, H, W, C).
        sides: Height and width that the graph takes; None for any.
    """
    sizes = [wanted or side for wanted, side in zip(sides, image.shape[1:3])]
    factor = max(1.0, *(wanted / side for wanted, side in zip(sizes, image.shape[1:3])))
    if factor > 1:
        enlarged = [max(wanted, round(factor * side)) for wanted, side in zip(sizes, image.shape[1:3])]
        values = F.interpolate(image.permute(0, 3, 1, 2).float(), enlarged, mode="bilinear")
        image = values.round().to(image.dtype).permute(0, 2, 3, 1)
    for axis, wanted in enumerate(sizes, 1):
        image = image.narrow(axis, torch.randint(image.size(axis) - wanted + 1, ()).item(), wanted)
    return image.contiguous()
