# SPDX-License-Identifier: Apache-2.0
"""Convolutions with a training form of several branches, in place of any nn.Conv2d."""

import inspect
from collections.abc import Collection, Iterable
from functools import reduce

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmrepmlp.checkpoint.names import rename
from mmrepmlp.reparam import Affine, Reparameterizable, affine, sum_kernels

from ..common import refuse_fx
from .branches import ChainBranch
from .geometry import Geometry

ATTRIBUTES = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("transposed", "output_padding"),
)
PLAIN = {"weight", "bias"}


class ReparameterizableConv2d(Reparameterizable):
    """A convolution that trains as a sum of branches, each with a batch norm, and deploys as one nn.Conv2d.

    It stands wherever nn.Conv2d does, and loads the weights of one, or of its own deploy form: they become the main
    branch's, and the others start from zero. What the authors' code saved loads in both forms. Kernels of one pixel, to
    which branches add nothing, and those with an even side, which have no middle, stay plain: the result is an
    nn.Conv2d.

    Subclasses name their branches; the first is the main one.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Sides of the kernel in pixels.
        stride: As in nn.Conv2d. Default: 1.
        padding: As in nn.Conv2d. Default: 0.
        dilation: As in nn.Conv2d. Default: 1.
        groups: As in nn.Conv2d. Default: 1.
        bias: As in nn.Conv2d, for those that stay plain; batch norms have one in any case. Default: True.
        padding_mode: As in nn.Conv2d. Default: "zeros".
        gamma_init: Initial weight of the last batch norm of each branch. Default: 1.
        single_init: Whether training starts from the main branch alone: those weights are 1 there and 0 in the others.
            Default: False.
        norm_cfg: Config of the batch norms. Default: ``dict(type="BN")``.
        deploy: Whether to build the deploy form. Default: False.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __new__(cls, *args, **settings) -> nn.Module:
        """Build a plain convolution where branches have nothing to add."""
        sides = _pair(args[2] if len(args) > 2 else settings.get("kernel_size", 3))
        if sides == (1, 1):
            return build_plain(*args, **settings)
        if any(side % 2 == 0 for side in sides):
            print_log(f"{cls.__name__}: a kernel of {sides[0]}x{sides[1]} has no middle and stays plain.", "current")
            return build_plain(*args, **settings)
        return super().__new__(cls)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        gamma_init: float = 1.0,
        single_init: bool = False,
        norm_cfg: dict = dict(type="BN"),
        deploy: bool = False,
        **settings: object,
    ) -> None:
        super().__init__(deploy=deploy)
        where = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, True, padding_mode)
        plain = nn.Conv2d(*where, device="meta")  # checks the arguments
        for name in ATTRIBUTES:
            setattr(self, name, getattr(plain, name))
        self.gamma_init, self.single_init = gamma_init, single_init
        self.border = plain._reversed_padding_repeated_twice
        if deploy:
            self.reparam = nn.Conv2d(*where)
            return
        padding = (0, 0) if padding_mode != "zeros" else (self.border[2], self.border[0])
        geometry = Geometry(self.kernel_size, self.stride, padding, self.dilation)
        self.branches = nn.ModuleDict(self.build_branches(geometry, norm_cfg=norm_cfg, **settings))
        if not all(norm.affine for norm in self.last_norms().values()):
            raise ValueError(f"norm_cfg={norm_cfg}: expected batch norms with weight and bias, that is affine=True.")
        self.restart()

    def build_branches(self, geometry: Geometry, norm_cfg: dict) -> dict[str, nn.Module]:
        """Build the branches of the training form, the main one first."""
        raise NotImplementedError

    def official_names(self) -> dict[str, str]:
        """The authors' names of modules, and ours."""
        raise NotImplementedError

    def last_norms(self) -> dict[str, nn.Module]:
        """The last batch norm of each branch of the training form, by name, that of the main one first."""
        branches = self.branches.items() if hasattr(self, "branches") else ()
        inside = {name: "second.bn" if isinstance(branch, ChainBranch) else "bn" for name, branch in branches}
        return {f"branches.{name}.{path}": self.branches[name].get_submodule(path) for name, path in inside.items()}

    def output_layers(self) -> list[nn.Module]:
        """The layers with a row for each output channel, which make two channels equal if their rows are."""
        if self.fused:
            return [self.reparam]
        branches = self.branches.values()
        return [x for b in branches for x in (b.output_layers() if isinstance(b, ChainBranch) else b.children())]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) as the nn.Conv2d of the same arguments does."""
        if self.fused:
            return self.reparam(x)
        refuse_fx(self, x)
        if self.padding_mode != "zeros":
            x = F.pad(x, self.border, mode=self.padding_mode)
        return reduce(torch.add, (branch(x) for branch in self.branches.values()))

    def get_equivalent_kernel_bias(self) -> Affine:
        """The authors' name for kernel (O, I / groups, h, w) and bias (O,) of the one equivalent convolution, float64
        and differentiable."""
        return self.equivalents()["reparam"]

    def equivalents(self) -> dict[str, Affine]:
        """The one convolution."""
        if self.fused:
            return {"reparam": affine(self.reparam)}
        return {"reparam": sum_kernels(affine(branch) for branch in self.branches.values())}

    def vanishing(self) -> Iterable[str]:
        """The branches."""
        return ["branches"]

    def deploy_layers(self) -> dict[str, nn.Module]:
        """The convolution."""
        return {"reparam": build_plain(**{**self.arguments, "bias": True})}

    def restart(self, initialized: Collection[str] = ()) -> None:
        """Give the last batch norms of the branches their initial weights."""
        for index, norm in enumerate(self.last_norms().values()):
            nn.init.constant_(norm.weight, float(index == 0) if self.single_init else self.gamma_init)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        inside = {name[len(prefix) :]: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        inside = rename(inside, self.official_names())
        plain = {name.removeprefix("reparam."): value for name, value in inside.items()}
        if plain.keys() <= PLAIN and "weight" in plain:
            inside = self.from_plain(**plain)
        state_dict.update({prefix + name: value for name, value in inside.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def from_plain(self, weight: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """The state of this convolution that computes what a plain one does: the main branch, without a norm to speak
        of, and nothing from the others."""
        bias = weight.new_zeros(weight.size(0)) if bias is None else bias
        if self.fused:
            return {"reparam.weight": weight, "reparam.bias": bias}
        state = self.state_dict()
        for index, (name, norm) in enumerate(self.last_norms().items()):
            state[f"{name}.weight"] = torch.full_like(bias, 0.0 if index else (1 + norm.eps) ** 0.5)
            state[f"{name}.bias"] = torch.zeros_like(bias) if index else bias
            if index == 0:
                state[f"{name}.running_mean"] = torch.zeros_like(bias)
                state[f"{name}.running_var"] = torch.ones_like(bias)
                state[f"{name.removesuffix('bn')}conv.weight"] = weight
        return state

    def extra_repr(self) -> str:
        where = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{where}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"


def build_plain(*args: object, **settings: object) -> nn.Conv2d:
    """Build the plain convolution of the same arguments; what concerns branches is left out."""
    known = inspect.signature(nn.Conv2d).parameters
    return nn.Conv2d(*args, **{name: value for name, value in settings.items() if name in known})
