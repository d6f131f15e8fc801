# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: the training form learns while the deploy form's arithmetic is rounded to int8."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.func import functional_call

from mmrepmlp.checkpoint import adapt_state_dict
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.common import GroupedLinear, is_tracing
from mmrepmlp.registry import MODELS

from .grid import input_quantizer, round_weight


@MODELS.register_module()
class QuantizedRepMLPNet(RepMLPNet):
    """A RepMLPNet that can be trained for int8.

    Before :meth:`enable_fake_quantization`, it is a RepMLPNet with the same arguments, and loads the same checkpoints.
    After it, a forward pass in any form computes what the deploy form will compute in int8: for each product, kernels,
    branches and batch norms are fused into one weight, which is rounded to 255 levels for each output channel or output
    pixel, and the input of the product is rounded to 256 levels between the moving averages of its extremes. Gradients
    pass through rounding and fusing to the parameters of the training form; running statistics of batch norms do not
    change. Conversion to deploy form leaves the weights on that grid.

    Args:
        arch: As in :class:`mmrepmlp.models.RepMLPNet`.
        insert_bn: Whether to build the deploy form with a batch norm after each ``fc3``, to recover accuracy by
            fine-tuning; see :class:`mmrepmlp.engine.CollectStatisticsHook`. Default: False.
        deploy: Whether to build the deploy form, without these norms. Default: False.
        **settings: Further arguments of :class:`mmrepmlp.models.RepMLPNet`; ``with_cp`` is not supported.

    Raises:
        ValueError: An argument is out of range, or ``with_cp`` is set.
    """

    def __init__(self, arch: str | dict, *, insert_bn: bool = False, deploy: bool = False, **settings) -> None:
        if settings.get("with_cp"):
            raise ValueError("with_cp=True: a second pass would change the ranges of the inputs. Leave with_cp out.")
        super().__init__(arch, deploy=deploy or insert_bn, **settings)
        if insert_bn and not deploy:
            for stage in self.stages:
                for unit in stage:
                    unit.repmlp_block.insert_bn(settings.get("norm_cfg", dict(type="BN", requires_grad=True)))
        self.skeleton = None
        self.quantizers = nn.ModuleDict({key_of(name): input_quantizer() for name in quantizable_layers(self)})
        self.register_buffer("fake_quantization_enabled", torch.tensor(False))
        self.fake_quantization = False

    def enable_fake_quantization(self) -> None:
        """Round weights and inputs of products from now on."""
        self.fake_quantization_enabled.fill_(True)
        self.fake_quantization = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps as RepMLPNet does, rounded once fake quantization is enabled."""
        if not self.fake_quantization:
            return super().forward(x)
        if is_tracing():  # exported weights are on the grid already
            if not self.deploy:
                raise MMRepMLPError(
                    "A QuantizedRepMLPNet can only be exported or compiled in deploy form: convert it first."
                )
            with self.rounded_inputs(self):
                return super().forward(x)
        network = self.deploy_skeleton()
        with self.rounded_inputs(network):
            return functional_call(network, self.rounded_layers(), (x,))

    def deploy_skeleton(self) -> RepMLPNet:
        """Return the network in deploy form, without values, in the same mode as this one."""
        if self.skeleton is None:
            with torch.device("meta"):
                # Bypasses nn.Module's registration: its parameters are not parameters of this network.
                self.__dict__["skeleton"] = self.build_training_form(deploy=True)
        return self.skeleton.train(self.training)

    def rounded_layers(self) -> dict[str, Tensor]:
        """Compute the parameters of the deploy form, by name, as rounded functions of this network's parameters."""
        inside, like = dict(self.named_parameters()), next(self.parameters())
        tensors = {name: inside.get(name) for name, _ in self.deploy_skeleton().named_parameters()}
        for name, layer in self.equivalents().items():
            tensors |= {f"{name}.weight": layer.weight.to(like), f"{name}.bias": layer.bias.to(like)}
        if not torch.is_grad_enabled():  # torch's flop counter fails on views of parameters without a graph
            tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        for name in (f"{name}.weight" for name in quantizable_layers(self.deploy_skeleton())):
            tensors[name] = round_weight(tensors[name])
        return tensors

    def build_training_form(self, **changes: object) -> RepMLPNet:
        """Build the RepMLPNet in training form that has this network's arguments, with changes."""
        settings = {name: value for name, value in self.arguments.items() if name != "insert_bn"}
        return RepMLPNet(**{**settings, "deploy": False, **changes})

    @contextmanager
    def rounded_inputs(self, network: nn.Module) -> Iterator[None]:
        """Round the inputs of the matrix products of a network; in training mode, their ranges are updated."""

        def round_input(name: str):
            quantizer = self.quantizers[key_of(name)]
            if self.training or not isinstance(quantizer, FakeQuantize):
                return lambda _, inputs: quantizer(inputs[0])
            levels = quantizer.quant_min, quantizer.quant_max  # evaluation does not change the range
            scale, zero = quantizer.scale, quantizer.zero_point
            return lambda _, inputs: torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, *levels)

        layers = quantizable_layers(network).items()
        handles = [layer.register_forward_pre_hook(round_input(name)) for name, layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def switch_to_deploy(self, *_: object) -> None:
        """Convert to deploy form in place; with fake quantization the weights end up on its grid."""
        if self.deploy:
            return
        super().switch_to_deploy()
        if self.fake_quantization:
            for layer in quantizable_layers(self).values():
                layer.weight.data = round_weight(layer.weight.data)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        additional = self.take_additional(state_dict, prefix)
        plain = {name: value for name, value in self.state_dict().items() if not self.is_additional(name)}
        adapt_state_dict(self, state_dict, prefix, args[0], *args[-2:], expected=plain)
        state_dict.update(additional)
        if self.deploy and additional[f"{prefix}fake_quantization_enabled"]:
            # Weights may have been fused while loading. Those on the grid do not change.
            for name in (f"{prefix}{name}.weight" for name in quantizable_layers(self)):
                if name in state_dict:
                    state_dict[name] = round_weight(state_dict[name])
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)  # not RepMLPNet's, which adapts state dicts
        self.fake_quantization = bool(self.fake_quantization_enabled)

    def take_additional(self, state_dict: dict, prefix: str) -> dict[str, Tensor]:
        """Remove the tensors that a RepMLPNet does not have from a state dict, and return them; this network's own
        replace those that it lacks."""
        # In training form, where fc3 has no bias, the norms after fc3 are not inserted ones: they are fused.
        has_inserted = any(name.startswith(prefix) and name.endswith(".fc3.bias") for name in state_dict)
        present = {prefix + name: value for name, value in self.state_dict().items() if self.is_additional(name)}
        loaded = [name for name in present if name in state_dict and (has_inserted or ".fc3_bn." not in name)]
        return {**present, **{name: state_dict.pop(name) for name in loaded}}

    def is_additional(self, name: str) -> bool:
        """Whether a tensor of the state dict is one that a RepMLPNet of the same form does not have."""
        inserted = self.fused and not self.stages[0][0].repmlp_block.fused
        return name.startswith(("quantizers.", "fake_quantization_enabled")) or (inserted and ".fc3_bn." in name)


def is_quantized(model: nn.Module) -> bool:
    """Whether a part of a model has fake quantization enabled."""
    return any(isinstance(module, QuantizedRepMLPNet) and module.fake_quantization for module in model.modules())


def quantizable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a network that remain as matrix products in deploy form, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, GroupedLinear)) and ".repconv" not in name
    }


def key_of(name: str) -> str:
    """Convert a dotted name to a key of a ModuleDict."""
    return name.replace(".", "-")
