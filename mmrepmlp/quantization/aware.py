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

    Until :meth:`enable_fake_quantization` it is the RepMLPNet of the same arguments, and loads what that loads. From
    then on a pass computes what the deploy form will in int8, whatever form the network is in: for each product the
    kernels, branches and batch norms are fused into one weight, which is rounded to 255 levels for each output
    channel or output pixel, and the product's input is rounded to 256 levels between the moving averages of its
    extremes. Gradients pass through rounding and fusing to the training form's parameters; running statistics of
    batch norms stay as they are. Conversion to deploy form leaves weights on that grid.

    Args:
        arch: As in :class:`mmrepmlp.models.RepMLPNet`.
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
                self.__dict__["skeleton"] = self.build_training_form(deploy=True)
        return self.skeleton.train(self.training)

    def rounded_layers(self) -> dict[str, Tensor]:
        """The parameters of the deploy form, by name, as rounded functions of this network's."""
        inside, like = dict(self.named_parameters()), next(self.parameters())
        tensors = {name: inside.get(name) for name, _ in self.deploy_skeleton().named_parameters()}
        for name, layer in self.equivalents().items():
            tensors |= {f"{name}.weight": layer.weight.to(like), f"{name}.bias": layer.bias.to(like)}
        if not torch.is_grad_enabled():  # torch's flop counter stumbles over views of parameters without a graph
            tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        for name in (f"{name}.weight" for name in quantizable_layers(self.deploy_skeleton())):
            tensors[name] = round_weight(tensors[name])
        return tensors

    def build_training_form(self, **changes: object) -> RepMLPNet:
        """Build the RepMLPNet that this network, before rounding, is or would be the deploy form of, with changes of
        its arguments."""
        settings = {name: value for name, value in self.arguments.items() if name != "insert_bn"}
        return RepMLPNet(**{**settings, "deploy": False, **changes})

    @contextmanager
    def rounded_inputs(self, network: nn.Module) -> Iterator[None]:
        """Round what the matrix products of a network are fed; in training mode the ranges follow it."""

        def round_input(name: str):
            quantizer = self.quantizers[key_of(name)]
            if self.training or not isinstance(quantizer, FakeQuantize):
                return lambda _, inputs: quantizer(inputs[0])
            levels = quantizer.quant_min, quantizer.quant_max  # of a range that evaluation leaves alone
            scale, zero = quantizer.scale, quantizer.zero_point
            return lambda _, inputs: torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, *levels)

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
                layer.weight.data = round_weight(layer.weight.data)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        additional = self.take_additional(state_dict, prefix)
        plain = {name: value for name, value in self.state_dict().items() if not self.is_additional(name)}
        adapt_state_dict(self, state_dict, prefix, args[0], *args[-2:], expected=plain)
        state_dict.update(additional)
        if self.deploy and additional[f"{prefix}fake_quantization_enabled"]:
            # Weights may have been fused on the way in. What is on the grid stays.
            for name in (f"{prefix}{name}.weight" for name in quantizable_layers(self)):
                if name in state_dict:
                    state_dict[name] = round_weight(state_dict[name])
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)  # past what RepMLPNet does to state dicts
        self.fake_quantization = bool(self.fake_quantization_enabled)

    def take_additional(self, state_dict: dict, prefix: str) -> dict[str, Tensor]:
        """Take the tensors that a RepMLPNet does not have out of a state dict; what it lacks is this network's."""
        # Of a training form's norms behind fc3, which has no bias there, nothing is left once they are fused.
        has_inserted = any(name.startswith(prefix) and name.endswith(".fc3.bias") for name in state_dict)
        present = {prefix + name: value for name, value in self.state_dict().items() if self.is_additional(name)}
        loaded = [name for name in present if name in state_dict and (has_inserted or ".fc3_bn." not in name)]
        return {**present, **{name: state_dict.pop(name) for name in loaded}}

    def is_additional(self, name: str) -> bool:
        """Whether a tensor of the state dict is one that a RepMLPNet of the same form does not have."""
        inserted = self.fused and not self.stages[0][0].repmlp_block.fused
        return name.startswith(("quantizers.", "fake_quantization_enabled")) or (inserted and ".fc3_bn." in name)


def is_quantized(model: nn.Module) -> bool:
    """Whether a part of a model rounds as it was trained to."""
    return any(isinstance(module, QuantizedRepMLPNet) and module.fake_quantization for module in model.modules())


def quantizable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that remain as matrix products in deploy form, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, GroupedLinear)) and ".repconv" not in name
    }


def key_of(name: str) -> str:
    """A dotted name as a key of a ModuleDict."""
    return name.replace(".", "-")
