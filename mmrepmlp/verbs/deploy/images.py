# SPDX-License-Identifier: Apache-2.0
"""Images of a config's datasets as a deployed graph takes them."""

import copy

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmrepmlp.verbs.config import innermost_dataset
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.model import iter_dicts


def dataset_images(cfg: Config, split: str, number: int) -> list[Tensor]:
    """Images of a dataset, transformed as for testing and not yet normalized.

    Args:
        cfg: The config.
        split: ``train`` or ``test``.
        number: How many, drawn at random with a fixed seed; all if the dataset has fewer.

    Returns:
        Images of shape (1, H, W, C), uint8.

    Raises:
        ExplainedError: The dataset does not exist.
        ValueError: The config has none, or it is empty.
    """
    given = cfg.get(f"{split}_dataloader")
    if not given:
        raise ValueError(f"The config has no {split}_dataloader, from which images would be taken.")
    dataset = copy.deepcopy(given["dataset"])
    for part in iter_dicts(dataset):
        if "pipeline" in part:
            part["pipeline"] = innermost_dataset(cfg).get("pipeline")
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
            (image,) = data["inputs"]
            image = torch.as_tensor(image)
            image = image.round().clamp(0, 255) if image.is_floating_point() else image
            images.append(image.permute(1, 2, 0)[None].to(torch.uint8).contiguous())
    if not images:
        raise ValueError(f"The config's {split} set has no image.")
    return images
