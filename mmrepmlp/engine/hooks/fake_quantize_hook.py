# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.quantization import QuantizedRepMLPNet
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class FakeQuantizeHook(Hook):
    """Switch fake quantization on in every :class:`mmrepmlp.quantization.QuantizedRepMLPNet` of the model.

    Args:
        begin: Epoch, from 0, before which to switch it on. Default: 0.
    """

    def __init__(self, begin: int = 0) -> None:
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        """Refuse a model without such a network.

        Raises:
            ValueError: There is none.
        """
        if not networks(runner):
            raise ValueError(
                "FakeQuantizeHook: the model has no QuantizedRepMLPNet. Write type='mmrepmlp.QuantizedRepMLPNet' where "
                "the config says 'mmrepmlp.RepMLPNet', with the same arguments."
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Switch it on when its time has come."""
        for network in networks(runner):
            if runner.epoch >= self.begin and not network.fake_quantization:
                network.enable_fake_quantization()
                runner.logger.info(f"Fake quantization is on, from epoch {runner.epoch + 1}.")


def networks(runner: Runner) -> list[QuantizedRepMLPNet]:
    """The networks in the runner's model that can quantize."""
    return [module for module in runner.model.modules() if isinstance(module, QuantizedRepMLPNet)]
