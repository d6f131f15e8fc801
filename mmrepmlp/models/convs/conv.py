# SPDX-License-Identifier: Apache-2.0
"""Convolutions with a training form of several branches, in place of any nn.Conv2d."""

import inspect
from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmrepmlp.checkpoint.names import rename
from mmrepmlp.reparam import Reparameterizable, set_weight_and_bias

from .branches import Equivalent
from .geometry import Geometry

ATTRIBUTES = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("transposed", "output_padding"),
)
PLAIN = {"weight", "bias"}


class ReparameterizableConv2d(nn.Module, Reparameterizable):
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
        stride: As of nn.Conv2d. Default: 1.
        padding: As of nn.Conv2d. Default: 0.
        dilation: As of nn.Conv2d. Default: 1.
        groups: As of nn.Conv2d. Default: 1.
        bias: As of nn.Conv2d, for those that stay plain; batch norms have one in any case. Default: True.
        padding_mode: As of nn.Conv2d. Default: "zeros".
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
        super().__init__()
        where = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, True, padding_mode)
        plain = nn.Conv2d(*where, device="meta")  # checks the arguments
        for name in ATTRIBUTES:
            setattr(self, name, getattr(plain, name))
        self.arguments, self.settings = where, dict(settings, norm_cfg=norm_cfg)
        self.gamma_init, self.single_init = gamma_init, single_init
        self.border = plain._reversed_padding_repeated_twice
        self.branches = nn.ModuleDict()
        if deploy:
            self.reparam = nn.Conv2d(*where)
            return
        padding = (0, 0) if padding_mode != "zeros" else (self.border[2], self.border[0])
        geometry = Geometry(self.kernel_size, self.stride, padding, self.dilation)
        self.branches.update(self.build_branches(geometry, **self.settings))
        if not all(branch.last_norm.affine for branch in self.branches.values()):
            raise ValueError(f"norm_cfg={norm_cfg}: expected batch norms with weight and bias, that is affine=True.")
        self.reset_gammas()

    def build_branches(self, geometry: Geometry, norm_cfg: dict) -> dict[str, nn.Module]:
        """Build the branches of the training form, the main one first."""
        raise NotImplementedError

    def official_names(self) -> dict[str, str]:
        """The authors' names of modules, and ours."""
        raise NotImplementedError

    @property
    def deploy(self) -> bool:
        return "reparam" in self._modules

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) as the nn.Conv2d of the same arguments does."""
        if self.deploy:
            return self.reparam(x)
        if self.padding_mode != "zeros":
            x = F.pad(x, self.border, mode=self.padding_mode)
        return reduce(torch.add, (branch(x) for branch in self.branches.values()))

    def get_equivalent_kernel_bias(self) -> Equivalent:
        """Merge all branches, differentiably.

        Returns:
            Kernel (O, I / groups, h, w) and bias (O,) of the one equivalent convolution; float64 in training form, its
            own parameters in deploy form.
        """
        if self.deploy:
            return self.reparam.weight, self.reparam.bias
        kernels, biases = zip(*(branch.get_equivalent_kernel_bias() for branch in self.branches.values()))
        whole = Geometry(self.kernel_size, self.stride, (0, 0), self.dilation)
        return sum(map(whole.enlarge, kernels)), sum(biases)

    def switch_to_deploy(self) -> None:
        """Leave one convolution with a bias, in place."""
        if self.deploy:
            return
        kernel, bias = self.get_equivalent_kernel_bias()
        like = next(self.branches.parameters())
        conv = nn.Conv2d(*self.arguments, device=like.device, dtype=like.dtype)
        conv.requires_grad_(any(parameter.requires_grad for parameter in self.branches.parameters()))
        set_weight_and_bias(conv, kernel, bias)
        self.branches.clear()
        self.reparam = conv.train(self.training)

    def apply(self, fn: Callable[[nn.Module], None]) -> "ReparameterizableConv2d":
        """As of nn.Module. MMEngine's initializers, which give every batch norm of a host the weight 1, leave those of
        the branches as they should start."""
        super().apply(fn)
        if getattr(fn, "__module__", None) == "mmengine.model.weight_init":
            self.reset_gammas()
        return self

    def reset_gammas(self) -> None:
        """Give the last batch norms their initial weights."""
        for index, branch in enumerate(self.branches.values()):
            nn.init.constant_(branch.last_norm.weight, float(index == 0) if self.single_init else self.gamma_init)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        own = {name[len(prefix) :]: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        own = rename(own, self.official_names())
        plain = {name.removeprefix("reparam."): value for name, value in own.items()}
        if plain.keys() <= PLAIN and "weight" in plain:
            own = self.from_plain(**plain)
        elif self.deploy and own:
            own = self.fold(own)
        state_dict.update({prefix + name: value for name, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def from_plain(self, weight: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """The state of this convolution that computes what a plain one does: the main branch, without a norm to speak
        of, and nothing from the others."""
        bias = weight.new_zeros(weight.size(0)) if bias is None else bias
        if self.deploy:
            return {"reparam.weight": weight, "reparam.bias": bias}
        state = self.state_dict()
        for index, (name, branch) in enumerate(self.branches.items()):
            norm = next(path for path, module in branch.named_modules() if module is branch.last_norm)
            gamma = (1 + branch.last_norm.eps) ** 0.5 if index == 0 else 0.0
            state[f"branches.{name}.{norm}.weight"] = torch.full_like(bias, gamma)
            state[f"branches.{name}.{norm}.bias"] = bias if index == 0 else torch.zeros_like(bias)
            if index == 0:
                state[f"branches.{name}.conv.weight"] = weight
                state[f"branches.{name}.{norm}.running_mean"] = torch.zeros_like(bias)
                state[f"branches.{name}.{norm}.running_var"] = torch.ones_like(bias)
        return state

    def fold(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of the deploy form from that of the training form; any other stays as it is."""
        with torch.device("meta"):
            twin = type(self)(*self.arguments, **self.settings)
        if twin.state_dict().keys() - state.keys():
            return state
        like = state[f"branches.{next(iter(twin.branches))}.conv.weight"]
        twin.to_empty(device=like.device).to(like.dtype).load_state_dict(state)
        kernel, bias = twin.get_equivalent_kernel_bias()
        return {"reparam.weight": kernel.detach().to(like), "reparam.bias": bias.detach().to(like)}

    def extra_repr(self) -> str:
        where = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{where}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"


def build_plain(*args: object, **settings: object) -> nn.Conv2d:
    """The plain convolution of the same arguments; what concerns branches is left out."""
    known = inspect.signature(nn.Conv2d).parameters
    return nn.Conv2d(*args, **{name: value for name, value in settings.items() if name in known})
