# SPDX-License-Identifier: Apache-2.0
from torch import Tensor, nn

from .norm import build_batch_norm


class PartitionAverage(nn.Module):
    """The average of each partition of a map, and a batch norm, gone in deploy form (RepMLP, paper section 3.2).

    Args:
        channels: Number of channels.
        h: Height of a partition in pixels.
        w: Width of a partition in pixels.
        norm_cfg: Config of the batch norm.
        deploy: Whether to build the deploy form. Default: False.
    """

    def __init__(self, channels: int, h: int, w: int, norm_cfg: dict, deploy: bool = False) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d((h, w))
        self.bn = nn.Identity() if deploy else build_batch_norm(norm_cfg, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / h, W / w)."""
        return self.bn(self.pool(x))


class PartitionMLP(nn.Module):
    """Two fully connected layers, through which all partitions and channels see each other.

    Args:
        features: Number of channels times number of partitions.
        reduction: What ``features`` are divided by for the width between the layers.
    """

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, features // reduction)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(features // reduction, features)

    def forward(self, averages: Tensor) -> Tensor:
        """Map (N, C, rows, columns) to the same shape."""
        return self.fc2(self.relu(self.fc1(averages.flatten(1)))).view_as(averages)
