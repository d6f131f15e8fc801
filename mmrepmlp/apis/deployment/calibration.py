# SPDX-License-Identifier: Apache-2.0
"""Preprocessed images of a config, for calibration and timing."""

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor


def calibration_batches(cfg: Config, images: int, batch_size: int = 16) -> list[Tensor]:
    """Training images of a config, preprocessed as for testing.

    Args:
        cfg: The config.
        images: Number of images, drawn at random with a fixed seed.
        batch_size: Images per batch. Default: 16.

    Returns:
        Normalized batches of shape (N, C, H, W).
    """
    loader = ConfigDict(
        {
            **cfg.test_dataloader,
            "dataset": {**cfg.train_dataloader.dataset, "pipeline": cfg.test_dataloader.dataset.pipeline},
            "sampler": dict(type="DefaultSampler", shuffle=True),
            "batch_size": batch_size,
        }
    )
    settings = cfg.model.get("data_preprocessor") or cfg.data_preprocessor
    if "type" not in settings:
        settings = {"type": "ClsDataPreprocessor", **settings}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        preprocess = MODELS.build(settings)
        batches = []
        for data in Runner.build_dataloader(loader, seed=0):
            batches.append(torch.as_tensor(preprocess(data, False)["inputs"]))
            if len(batches) * batch_size >= images:
                break
    return batches
