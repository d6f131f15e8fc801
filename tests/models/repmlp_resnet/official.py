# SPDX-License-Identifier: Apache-2.0
"""RepMLP-ResNet, written out naively from its description with the authors' names: references for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norm(bn: _BatchNorm, x: Tensor) -> Tensor:
    """A batch norm of (N, C, ...) from its definition, by statistics of the batch in training mode."""
    rest = [dim for dim in range(x.dim()) if dim != 1]
    mean = x.mean(rest) if bn.training else bn.running_mean
    var = x.var(rest, unbiased=False) if bn.training else bn.running_var
    mean, var, weight, bias = (t.view(1, -1, *[1] * (x.dim() - 2)) for t in (mean, var, bn.weight, bn.bias))
    return weight * (x - mean) / torch.sqrt(var + bn.eps) + bias


class ConvBN(nn.Module):
    def __init__(self, in_channels, out_channels, kernel, stride=1, groups=1, relu=False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(out_channels), relu

    def forward(self, x: Tensor) -> Tensor:
        out = norm(self.bn, self.conv(x))
        return torch.relu(out) if self.relu else out


class OfficialRepMLP(nn.Module):
    """One partition after the other, one group after the other."""

    def __init__(self, channels, outputs, height, width, h, w, kernels, reduction, groups) -> None:
        super().__init__()
        self.rows, self.columns, self.h, self.w, self.groups = height // h, width // w, h, w, groups
        self.outputs, self.kernels = outputs, kernels
        if (height, width) != (h, w):
            features = channels * self.rows * self.columns
            self.fc1_fc2 = nn.Sequential()
            self.fc1_fc2.add_module("fc1", nn.Linear(features, features // reduction))
            self.fc1_fc2.add_module("fc2", nn.Linear(features // reduction, features))
            self.avg = nn.Sequential()
            self.avg.add_module("bn", nn.BatchNorm2d(channels))
        self.fc3 = nn.Conv2d(channels * h * w, outputs * h * w, 1, groups=groups, bias=False)
        self.fc3_bn = nn.BatchNorm1d(outputs * h * w)
        for kernel in kernels:
            self.add_module(f"repconv{kernel}", ConvBN(channels, outputs, kernel, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        h, w, rows, columns = self.h, self.w, x.size(2) // self.h, x.size(3) // self.w
        places = [(i, j) for i in range(rows) for j in range(columns)]
        parts = [x[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w] for i, j in places]
        if hasattr(self, "fc1_fc2"):
            averages = norm(self.avg.bn, torch.stack([part.mean((2, 3)) for part in parts], 2))  # (N, C, partitions)
            fc1, fc2 = self.fc1_fc2.fc1, self.fc1_fc2.fc2
            hidden = torch.relu(averages.reshape(len(x), -1) @ fc1.weight.T + fc1.bias)
            added = (hidden @ fc2.weight.T + fc2.bias).view(averages.shape)
            parts = [part + added[:, :, i, None, None] for i, part in enumerate(parts)]
        partitions = torch.cat(parts)  # all that batch statistics are taken over
        total = norm(self.fc3_bn, self.perceive(partitions.flatten(1))).view(-1, self.outputs, h, w)
        for kernel in self.kernels:
            total = total + getattr(self, f"repconv{kernel}")(partitions)
        out = x.new_zeros(len(x), self.outputs, *x.shape[2:])
        for (i, j), part in zip(places, total.split(len(x))):
            out[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w] = part
        return out

    def perceive(self, vectors: Tensor) -> Tensor:
        matrices = self.fc3.weight.flatten(1).chunk(self.groups)
        return torch.cat([v @ m.T for v, m in zip(vectors.chunk(self.groups, 1), matrices)], 1)


class Block(nn.Module):
    """A residual block; ``layers`` are called one after the other, with a ReLU behind RepMLP."""

    def __init__(self, in_channels, out_channels, stride, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.names = list(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        if stride > 1 or in_channels != out_channels:
            self.shortcut = ConvBN(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for name in self.names:
            out = getattr(self, name)(out)
            out = torch.relu(out) if "repmlp" in name else out
        return torch.relu(out + (self.shortcut(x) if hasattr(self, "shortcut") else x))


def base_block(in_channels, out_channels, stride) -> Block:
    inside = out_channels // 4
    layers = dict(
        conv1=ConvBN(in_channels, inside, 1, relu=True),
        conv2=ConvBN(inside, inside, 3, stride, relu=True),
        conv3=ConvBN(inside, out_channels, 1),
    )
    return Block(in_channels, out_channels, stride, layers)


def light_block(channels, side, h, kernels, groups) -> Block:
    inside = channels // 8
    layers = dict(
        light_conv1=ConvBN(channels, inside, 1, relu=True),
        light_repmlp=OfficialRepMLP(inside, inside, side, side, h, h, kernels, 1, groups),
        light_conv3=ConvBN(inside, channels, 1),
    )
    return Block(channels, channels, 1, layers)


def bottleneck_block(channels, side, h, kernels, groups, reduction) -> Block:
    outer, inner = channels // 4, channels // 4 // reduction
    layers = dict(
        btnk_conv1=ConvBN(channels, outer, 1, relu=True),
        btnk_conv2=ConvBN(outer, inner, 3, relu=True),
        btnk_repmlp=OfficialRepMLP(inner, inner, side, side, h, h, kernels, 1, groups),
        btnk_conv4=ConvBN(inner, outer, 3, relu=True),
        btnk_conv5=ConvBN(outer, channels, 1),
    )
    return Block(channels, channels, 1, layers)


class OfficialRepMLPResNet(nn.Module):
    """The whole network; RepMLP in all blocks of stages 2 and 3 but the first."""

    def __init__(self, block, base, img_size, h, kernels, classes) -> None:
        super().__init__()
        self.stage0 = ConvBN(3, base, 7, 2, relu=True)
        width, side = base, img_size // 4
        for stage, depth in enumerate((3, 4, 6, 3), 1):
            channels, stride = 2 ** (stage + 1) * base, 1 if stage == 1 else 2
            side //= stride
            blocks = [base_block(width, channels, stride)]
            for _ in range(depth - 1):
                if stage in (1, 4):
                    blocks.append(base_block(channels, channels, 1))
                elif block == "light":
                    blocks.append(light_block(channels, side, h, kernels, 4))
                else:
                    blocks.append(bottleneck_block(channels, side, h, kernels, 8, {2: 2, 3: 4}[stage]))
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
            width = channels
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of the four stages."""
        x, maps = F.max_pool2d(self.stage0(x), 3, 2, 1), []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
            maps.append(x)
        return maps


def convert(network: nn.Module) -> dict[str, Tensor]:
    """The deploy form's state dict, computed entry by entry with the authors' names."""
    state = {}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, ConvBN) and "repconv" not in name:
            state[f"{prefix}conv.weight"], state[f"{prefix}conv.bias"] = fold_conv(module)
        elif isinstance(module, OfficialRepMLP):
            state.update({prefix + key: value for key, value in convert_repmlp(module).items()})
        elif isinstance(module, nn.Linear) and "fc1_fc2." not in name:
            state.update({prefix + key: value for key, value in module.state_dict().items()})
    return state


def fold_conv(layer: ConvBN) -> tuple[Tensor, Tensor]:
    factor = layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)
    return layer.conv.weight * factor.view(-1, 1, 1, 1), layer.bn.bias - layer.bn.running_mean * factor


def convert_repmlp(module: OfficialRepMLP) -> dict[str, Tensor]:
    """Column after column of the matrix: what the layers make of one input at a time, less what they make of zeros."""
    h, w, inputs = module.h, module.w, module.fc3.weight.size(1)

    def respond(vectors: Tensor) -> Tensor:
        out = norm(module.fc3_bn, module.perceive(vectors))
        maps = vectors.view(len(vectors), -1, h, w)
        return out + sum(getattr(module, f"repconv{k}")(maps).flatten(1) for k in module.kernels)

    zeros = torch.zeros(1, inputs * module.groups, dtype=module.fc3.weight.dtype)
    bias = respond(zeros)
    columns = [respond(torch.eye(inputs).to(zeros)[i : i + 1].repeat(1, module.groups)) - bias for i in range(inputs)]
    state = {"fc3.weight": torch.cat(columns).T[:, :, None, None], "fc3.bias": bias[0]}
    if hasattr(module, "fc1_fc2"):
        fc1, fc2, bn = module.fc1_fc2.fc1, module.fc1_fc2.fc2, module.avg.bn
        factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        each = module.rows * module.columns
        scale, shift = (t.repeat_interleave(each) for t in (factor, bn.bias - bn.running_mean * factor))
        state |= {"fc1_fc2.fc1.weight": fc1.weight * scale, "fc1_fc2.fc1.bias": fc1.bias + fc1.weight @ shift}
        state |= {"fc1_fc2.fc2.weight": fc2.weight, "fc1_fc2.fc2.bias": fc2.bias}
    return state
