# SPDX-License-Identifier: Apache-2.0
"""A network of three convolutions and a training of seconds, for what compresses in training."""

from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

LAYERS = ("conv1", "conv2")


@MODELS.register_module(force=True)
class ToyClassifier(BaseModel):
    """Classifies images of 8 x 8 pixels; the filters of ``conv1`` and ``conv2`` can be removed."""

    img_size = 8

    def __init__(self, width: int = 8, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> object:
        x = F.relu(self.bn1(self.conv1(inputs)))
        x = self.conv3(F.relu(self.bn2(self.conv2(x))))
        scores = self.fc(torch.tanh(x).mean((2, 3)) + x.mean((2, 3)))
        return dict(loss=F.cross_entropy(scores, labels)) if mode == "loss" else scores


def samples(number: int = 64) -> list[dict]:
    """Random images whose label is the quarter of the mean color that they are in."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(number, 3, 8, 8, generator=generator)
    images += torch.randn(number, 3, 1, 1, generator=generator)
    labels = (images[:, 0].mean((1, 2)) > 0).long() * 2 + (images[:, 1].mean((1, 2)) > 0).long()
    return [dict(inputs=image, labels=label) for image, label in zip(images, labels)]


def step(model: nn.Module, optimizer: Optimizer, index: int) -> dict[str, Tensor]:
    """Take a step; returns the gradients of the loss."""
    batch = samples()[index % 4 * 16 :][:16]
    images, labels = torch.stack([s["inputs"] for s in batch]), torch.stack([s["labels"] for s in batch])
    optimizer.zero_grad()
    model(images.to(model.fc.weight), labels, mode="loss")["loss"].backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    return gradients


def runner(
    folder: Path,
    hook: dict | None,
    epochs: int = 20,
    optimizer: dict | None = None,
    model: dict | None = None,
    **settings,
) -> Runner:
    """Build a training of some epochs, 4 iterations each, by SGD with a cosine schedule."""
    optim_wrapper = dict(optimizer=optimizer or dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4))
    return Runner(
        **{
            **dict(
                model=model or dict(type="ToyClassifier"),
                work_dir=str(folder),
                train_dataloader=dict(
                    dataset=samples(),
                    batch_size=16,
                    sampler=dict(type="DefaultSampler", shuffle=True),
                    collate_fn=dict(type="default_collate"),
                ),
                train_cfg=dict(by_epoch=True, max_epochs=epochs),
                optim_wrapper=optim_wrapper,
                param_scheduler=[
                    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=epochs, convert_to_iter_based=True)
                ],
                custom_hooks=[hook] if hook else [],
                default_hooks=dict(logger=None, checkpoint=dict(type="CheckpointHook", interval=epochs // 2)),
                log_level="WARNING",
                randomness=dict(seed=0),
                experiment_name=folder.name,
            ),
            **settings,
        }
    )
