# SPDX-License-Identifier: Apache-2.0
import math

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """Fully connected layers side by side, one for each group of features.

    Computed as one batched matrix product. The weight keeps the shape of the grouped 1x1 convolution that the authors
    and mmpretrain use, so that checkpoints are interchangeable.

    Args:
        groups: Number of groups G.
        in_features: Number of inputs P of each group.
        out_features: Number of outputs Q of each group.
        bias: Whether to add a bias. Default: False.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.groups, self.in_features, self.out_features = groups, in_features, out_features
        self.weight = nn.Parameter(torch.empty(groups * out_features, in_features, 1, 1))
        self.bias = nn.Parameter(torch.empty(groups * out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as torch does a linear layer with P inputs."""
        bound = 1 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (G, M, P) to (G, M, Q)."""
        out = self.multiply(x, self.weight.view(self.groups, self.out_features, self.in_features))
        return out if self.bias is None else out.add_(self.bias.view(self.groups, 1, self.out_features))

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Map (G, M, P) by matrices (G, Q, P) to (G, M, Q)."""
        return torch.bmm(x, matrices.transpose(1, 2))

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"groups={self.groups}, {sizes}, bias={self.bias is not None}"
