# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.models import RepMLPNet
from mmrepmlp.quantization import QuantizedRepMLPNet
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class FakeQuantizeHook(Hook):
    """Enable fake quantization in every :class:`mmrepmlp.quantization.QuantizedRepMLPNet` of the model.

    Args:
        begin: Epoch, from 0, at the start of which it is enabled; iteration-based training is one epoch. Default: 0.
    """

    def __init__(self, begin: int = 0) -> None:
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        """Check that the model has such a network, and that training does not end before ``begin``."""
        if not quantized_networks(runner):
            advice = (
                "Only RepMLPNet trains for int8. Quantize this model after training: mmrepmlp deploy --precision int8."
            )
            if any(isinstance(module, RepMLPNet) for module in runner.model.modules()):
                advice = "Use type='mmrepmlp.QuantizedRepMLPNet' in place of 'mmrepmlp.RepMLPNet', with its arguments."
            raise ValueError(f"FakeQuantizeHook: the model has no QuantizedRepMLPNet. {advice}")
        if not 0 <= self.begin < runner.max_epochs:
            raise ValueError(
                f"FakeQuantizeHook: with begin={self.begin}, fake quantization would never start, since training has "
                f"{runner.max_epochs} epochs (iteration-based training counts as one). Choose a number from 0 to "
                f"{runner.max_epochs - 1}."
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Enable fake quantization from epoch ``begin`` on."""
        for network in quantized_networks(runner):
            if runner.epoch >= self.begin and not network.fake_quantization:
                network.enable_fake_quantization()
                runner.logger.info(f"Fake quantization is enabled from epoch {runner.epoch + 1} on.")


def quantized_networks(runner: Runner) -> list[QuantizedRepMLPNet]:
    """Return all QuantizedRepMLPNets in the runner's model."""
    return [module for module in runner.model.modules() if isinstance(module, QuantizedRepMLPNet)]
