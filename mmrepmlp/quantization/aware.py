# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: the training form learns while the deploy form's arithmetic is rounded to int8."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.ao.quantization.fx import _decomposed  # noqa: F401, registers the operators below

from mmrepmlp.checkpoint import adapt_state_dict
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.layers import SetSharingLinear
from mmrepmlp.models.layers.tracing import is_tracing
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import differentiable, set_weight_and_bias

from .grid import input_quantizer, round_weight

quantized = torch.ops.quantized_decomposed


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
        **settings: Further arguments of :class:`mmrepmlp.models.RepMLPNet`; ``with_cp`` is not accepted.

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
        if is_tracing() and not self.deploy:
            raise MMRepMLPError(
                "What trains for int8 can be exported or compiled in deploy form alone: convert it first."
            )
        network = self if is_tracing() else self.rounded_deploy_form()  # what is exported is on the grid already
        with self.rounded_inputs(network):
            return RepMLPNet.forward(network, x)

    def rounded_deploy_form(self) -> "QuantizedRepMLPNet":
        """A network in deploy form whose weights are rounded functions of this network's parameters."""
        shared = {id(tensor): tensor for tensor in itertools.chain(self.parameters(), self.buffers())}
        network = copy.deepcopy(self, shared)
        with differentiable():
            RepMLPNet.switch_to_deploy(network)
            for layer in quantizable_layers(network).values():
                set_weight_and_bias(layer, round_weight(layer.weight), layer.bias)
        return network

    @contextmanager
    def rounded_inputs(self, network: nn.Module) -> Iterator[None]:
        """Round what the products of a network are fed; in training mode the ranges follow it."""

        def round_input(name: str):
            quantizer = self.quantizers[key_of(name)]
            return lambda _, inputs: quantizer(inputs[0]) if self.training else round_in_range(quantizer, inputs[0])

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
        own = {prefix + name: value for name, value in self.state_dict().items() if self.is_additional(name)}
        # Of a training form's norms behind fc3, which has no bias there, nothing is left once they are folded.
        deployed = any(name.startswith(prefix) and name.endswith(".fc3.bias") for name in state_dict)
        given = {
            name: state_dict.pop(name) for name in own if name in state_dict and (deployed or ".fc3_bn." not in name)
        }
        plain = {name: value for name, value in self.state_dict().items() if not self.is_additional(name)}
        adapt_state_dict(self, state_dict, prefix, plain)
        state_dict.update({**own, **given})
        if self.deploy and state_dict[f"{prefix}fake_quantization_enabled"]:
            for name in (f"{prefix}{name}.weight" for name in quantizable_layers(self)):
                if name in state_dict:  # it may have been folded on the way in; what is on the grid stays as it is
                    state_dict[name] = round_weight(state_dict[name])
        BaseModule._load_from_state_dict(self, state_dict, prefix, *args)
        self.fake_quantization = bool(self.fake_quantization_enabled)

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
    if is_tracing():
        # Exporters know these operators alone, and their numbers as numbers: those of the eager pass before.
        levels = quantized.quantize_per_tensor(x, *quantizer.numbers, *bounds, torch.uint8)
        return quantized.dequantize_per_tensor(levels, *quantizer.numbers, *bounds, torch.uint8)
    quantizer.numbers = quantizer.scale.item(), int(quantizer.zero_point.item())
    return torch.fake_quantize_per_tensor_affine(x, *quantizer.numbers, *bounds)
