# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.quantization import QuantizedRepMLPNet
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class FakeQuantizeHook(Hook):
    """Switch fake quantization on in every :class:`mmrepmlp.quantization.QuantizedRepMLPNet` of the model.

    Args:
        begin: Epoch, from 0, before which to switch it on; training by iterations is one epoch. Default: 0.
    """

    def __init__(self, begin: int = 0) -> None:
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        """Refuse what would never quantize.

        Raises:
            ValueError: The model has no such network, or training ends before ``begin``.
        """
        if not networks(runner):
            raise ValueError(
                "FakeQuantizeHook: the model has no QuantizedRepMLPNet. Write type='mmrepmlp.QuantizedRepMLPNet' where "
                "the config says 'mmrepmlp.RepMLPNet', with the same arguments."
            )
        if not 0 <= self.begin < runner.max_epochs:
            raise ValueError(
                f"FakeQuantizeHook: begin={self.begin}, but training is over after {runner.max_epochs} epochs: it "
                "would never quantize (training by iterations counts as one epoch). Give a number from 0 to below that."
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
