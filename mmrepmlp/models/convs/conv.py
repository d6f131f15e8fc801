# SPDX-License-Identifier: Apache-2.0
"""Convolutions with several branches in training form, in place of any nn.Conv2d."""

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

    It replaces nn.Conv2d anywhere. Weights of an nn.Conv2d, or of its own deploy form, are loaded into the main branch,
    and the other branches then start from zero. Checkpoints of the authors' code load in both forms. For a kernel of
    one pixel, to which branches add nothing, or with an even side, which has no middle, an nn.Conv2d is built instead.

    Subclasses build the branches in :meth:`build_branches`; the first is the main one.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Height and width of the kernel in pixels.
        stride: As in nn.Conv2d. Default: 1.
        padding: As in nn.Conv2d. Default: 0.
        dilation: As in nn.Conv2d. Default: 1.
        groups: As in nn.Conv2d. Default: 1.
        bias: As in nn.Conv2d, where one is built instead; otherwise batch norms add a bias in any case. Default: True.
        padding_mode: As in nn.Conv2d. Default: "zeros".
        gamma_init: Initial weight of the last batch norm of each branch. Default: 1.
        single_init: Whether training starts from the main branch only: these weights are 1 there and 0 in the others.
            Default: False.
        norm_cfg: Config of the batch norms. Default: ``dict(type="BN")``.
        deploy: Whether to build the deploy form. Default: False.
        **settings: Further arguments of :meth:`build_branches`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __new__(cls, *args, **settings) -> nn.Module:
        """Build an nn.Conv2d where branches have nothing to add."""
        sides = _pair(args[2] if len(args) > 2 else settings.get("kernel_size", 3))
        if sides == (1, 1):
            return build_plain(*args, **settings)
        if any(side % 2 == 0 for side in sides):
            kernel = f"a kernel of {sides[0]}x{sides[1]}"
            print_log(f"{cls.__name__}: {kernel} has no middle, so an nn.Conv2d is built.", "current")
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
        plain_args = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, True, padding_mode)
        plain = nn.Conv2d(*plain_args, device="meta")  # checks the arguments
        for name in ATTRIBUTES:
            setattr(self, name, getattr(plain, name))
        self.gamma_init, self.single_init = gamma_init, single_init
        self.border = plain._reversed_padding_repeated_twice
        if deploy:
            self.reparam = nn.Conv2d(*plain_args)
            return
        padding = (0, 0) if padding_mode != "zeros" else (self.border[2], self.border[0])
        geometry = Geometry(self.kernel_size, self.stride, padding, self.dilation)
        self.branches = nn.ModuleDict(self.build_branches(geometry, norm_cfg=norm_cfg, **settings))
        if not all(norm.affine for norm in self.last_norms().values()):
            raise ValueError(f"norm_cfg={norm_cfg}: expected batch norms with weight and bias, that is affine=True.")
        self.restart()

    __new__.__signature__ = inspect.signature(__init__)  # inspect and Sphinx take that of __new__

    def build_branches(self, geometry: Geometry, norm_cfg: dict) -> dict[str, nn.Module]:
        """Build the branches of the training form, the main one first."""
        raise NotImplementedError

    def official_names(self) -> dict[str, str]:
        """Map the authors' names of modules to ours."""
        raise NotImplementedError

    def last_norms(self) -> dict[str, nn.Module]:
        """Return the last batch norm of each branch of the training form, by name, that of the main branch first."""
        branches = self.branches.items() if hasattr(self, "branches") else ()
        inside = {name: "second.bn" if isinstance(branch, ChainBranch) else "bn" for name, branch in branches}
        return {f"branches.{name}.{path}": self.branches[name].get_submodule(path) for name, path in inside.items()}

    def output_layers(self) -> list[nn.Module]:
        """Return the layers with a row for each output channel; channels with equal rows are equal."""
        if self.fused:
            return [self.reparam]
        branches = self.branches.values()
        return [x for b in branches for x in (b.output_layers() if isinstance(b, ChainBranch) else b.children())]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) as an nn.Conv2d with the same arguments does."""
        if self.fused:
            return self.reparam(x)
        refuse_fx(self, x)
        if self.padding_mode != "zeros":
            x = F.pad(x, self.border, mode=self.padding_mode)
        return reduce(torch.add, (branch(x) for branch in self.branches.values()))

    def get_equivalent_kernel_bias(self) -> Affine:
        """Return kernel (O, I / groups, h, w) and bias (O,) of the equivalent convolution, float64 and differentiable.

        The method has the name of the one in the authors' code.
        """
        return self.equivalents()["reparam"]

    def equivalents(self) -> dict[str, Affine]:
        """Return the equivalent convolution."""
        if self.fused:
            return {"reparam": affine(self.reparam)}
        return {"reparam": sum_kernels(affine(branch) for branch in self.branches.values())}

    def vanishing(self) -> Iterable[str]:
        """Return the name of the branches."""
        return ["branches"]

    def deploy_layers(self) -> dict[str, nn.Module]:
        """Build the convolution."""
        return {"reparam": build_plain(**{**self.arguments, "bias": True})}

    def restart(self, initialized: Collection[str] = ()) -> None:
        """Initialize the weights of the last batch norm of each branch."""
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
        """Return the state in which this module computes what an nn.Conv2d does: the main branch has its weights, and a
        norm that changes nothing; the other branches add nothing."""
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
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{sizes}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"


def build_plain(*args: object, **settings: object) -> nn.Conv2d:
    """Build an nn.Conv2d from the same arguments, without those for branches."""
    known = inspect.signature(nn.Conv2d).parameters
    return nn.Conv2d(*args, **{name: value for name, value in settings.items() if name in known})
