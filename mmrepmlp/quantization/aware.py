# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: the training form learns while the deploy form's arithmetic is rounded to int8."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.func import functional_call

from mmrepmlp.checkpoint import adapt_state_dict
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.layers import SetSharingLinear
from mmrepmlp.models.layers.tracing import is_tracing
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import set_weight_and_bias

from .grid import input_quantizer, round_weight


@MODELS.register_module()
class QuantizedRepMLPNet(RepMLPNet):
    """A RepMLPNet that can be trained for int8.

    Until :meth:`enable_fake_quantization` it is the RepMLPNet of the same arguments, and loads what that loads. From
    then on a pass computes what the deploy form will in int8, whatever form the network is in: for each product the
    kernels, branches and batch norms are merged into one weight, which is rounded to 255 levels for each output
    channel or output pixel, and the product's input is rounded to 256 levels between the moving averages of its
    extremes. Gradients pass through rounding and merging to the training form's parameters; running statistics of
    batch norms stay as they are. Conversion to deploy form leaves weights on that grid.

    Args:
        arch: As of :class:`mmrepmlp.models.RepMLPNet`.
        insert_bn: Whether to build the deploy form with a batch norm behind each ``fc3``, for recovering accuracy by
            fine-tuning; see :class:`mmrepmlp.engine.CollectStatisticsHook`. Default: False.
        deploy: Whether to build the deploy form, without those norms. Default: False.
        **settings: Further arguments of :class:`mmrepmlp.models.RepMLPNet`; ``with_cp`` is not supported.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, arch: str | dict, *, insert_bn: bool = False, deploy: bool = False, **settings) -> None:
        if settings.get("with_cp"):
            raise ValueError("with_cp=True: a second pass would move the ranges of the inputs. Leave with_cp out.")
        super().__init__(arch, deploy=deploy or insert_bn, **settings)
        if insert_bn and not deploy:
            for stage in self.stages:
                for unit in stage:
                    unit.repmlp_block.insert_bn(settings.get("norm_cfg", dict(type="BN", requires_grad=True)))
        self.settings = {**settings, "arch": arch}
        self.skeleton = None
        self.quantizers = nn.ModuleDict({key_of(name): input_quantizer() for name in quantizable_layers(self)})
        self.register_buffer("fake_quantization_enabled", torch.tensor(False))
        self.fake_quantization = False

    def enable_fake_quantization(self) -> None:
        """Round weights and inputs of products from now on."""
        self.fake_quantization_enabled.fill_(True)
        self.fake_quantization = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps, as :meth:`RepMLPNet.forward`, rounded or not."""
        if not self.fake_quantization:
            return super().forward(x)
        if is_tracing():  # what is exported is on the grid already
            if not self.deploy:
                raise MMRepMLPError(
                    "What trains for int8 can be exported or compiled in deploy form alone: convert it first."
                )
            with self.rounded_inputs(self):
                return super().forward(x)
        network = self.deploy_skeleton()
        with self.rounded_inputs(network):
            return functional_call(network, self.rounded_layers(), (x,))

    def deploy_skeleton(self) -> RepMLPNet:
        """The network in deploy form, without values, in the mode that this one is in."""
        if self.skeleton is None:
            with torch.device("meta"):
                # Past nn.Module's registration: its parameters are none of this network's.
                self.__dict__["skeleton"] = RepMLPNet(**self.settings, deploy=True)
        return self.skeleton.train(self.training)

    def rounded_layers(self) -> dict[str, Tensor]:
        """The parameters of the deploy form, by name, as rounded functions of this network's."""
        dtype, tensors = next(self.parameters()).dtype, {}
        shapes = dict(self.deploy_skeleton().named_parameters())
        quantizable = quantizable_layers(self).keys()
        for name, (weight, bias) in self.get_equivalent_layers().items():
            if not torch.is_grad_enabled():  # torch's flop counter stumbles over views of parameters without a graph
                weight, bias = weight.detach(), bias.detach()
            weight = weight.view(shapes[f"{name}.weight"].shape).to(dtype)
            tensors[f"{name}.weight"] = round_weight(weight) if name in quantizable else weight
            tensors[f"{name}.bias"] = bias.to(dtype)
        return tensors

    @contextmanager
    def rounded_inputs(self, network: nn.Module) -> Iterator[None]:
        """Round what the matrix products of a network are fed; in training mode the ranges follow it."""

        def round_input(name: str):
            quantizer = self.quantizers[key_of(name)]
            if self.training or not isinstance(quantizer, FakeQuantize):
                return lambda _, inputs: quantizer(inputs[0])
            return lambda _, inputs: round_in_range(quantizer, inputs[0])

        layers = quantizable_layers(network).items()
        handles = [layer.register_forward_pre_hook(round_input(name)) for name, layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def switch_to_deploy(self) -> None:
        """Convert to deploy form in place; with fake quantization the weights end up on its grid."""
        if self.deploy:
            return
        super().switch_to_deploy()
        if self.fake_quantization:
            for layer in quantizable_layers(self).values():
                set_weight_and_bias(layer, round_weight(layer.weight), layer.bias)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        additional = self.take_additional(state_dict, prefix)
        plain = {name: value for name, value in self.state_dict().items() if not self.is_additional(name)}
        adapt_state_dict(self, state_dict, prefix, plain)
        state_dict.update(additional)
        if self.deploy and additional[f"{prefix}fake_quantization_enabled"]:
            self.put_on_grid(state_dict, prefix)
        BaseModule._load_from_state_dict(self, state_dict, prefix, *args)
        self.fake_quantization = bool(self.fake_quantization_enabled)

    def take_additional(self, state_dict: dict, prefix: str) -> dict[str, Tensor]:
        """Take the tensors that a RepMLPNet does not have out of a state dict; what it lacks is this network's."""
        # Of a training form's norms behind fc3, which has no bias there, nothing is left once they are folded.
        has_inserted = any(name.startswith(prefix) and name.endswith(".fc3.bias") for name in state_dict)
        own = {prefix + name: value for name, value in self.state_dict().items() if self.is_additional(name)}
        given = [name for name in own if name in state_dict and (has_inserted or ".fc3_bn." not in name)]
        return {**own, **{name: state_dict.pop(name) for name in given}}

    def put_on_grid(self, state_dict: dict, prefix: str) -> None:
        """Round the weights in a state dict: they may have been folded on the way in. What is on the grid stays."""
        for name in (f"{prefix}{name}.weight" for name in quantizable_layers(self)):
            if name in state_dict:
                state_dict[name] = round_weight(state_dict[name])

    def is_additional(self, name: str) -> bool:
        """Whether a tensor of the state dict is one that a RepMLPNet of the same form does not have."""
        inserted = not self.deploy and self.stages[0][0].norms_are_folded
        return name.startswith(("quantizers.", "fake_quantization_enabled")) or (inserted and ".fc3_bn." in name)


def quantizable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that remain as matrix products in deploy form, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, SetSharingLinear)) and ".repconv" not in name
    }


def key_of(name: str) -> str:
    """A dotted name as a key of a ModuleDict."""
    return name.replace(".", "-")


def round_in_range(quantizer: FakeQuantize, x: Tensor) -> Tensor:
    """Round as a quantizer does, and leave its range alone."""
    bounds = quantizer.quant_min, quantizer.quant_max
    return torch.fake_quantize_per_tensor_affine(x, quantizer.scale, quantizer.zero_point, *bounds)
