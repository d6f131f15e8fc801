# SPDX-License-Identifier: Apache-2.0
import itertools

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.quantization import collect_statistics
from mmrepmlp.registry import HOOKS

from .switch_to_deploy_hook import get_model


@HOOKS.register_module()
class CollectStatisticsHook(Hook):
    """Initialize the batch norms after ``fc3`` of a deployed backbone from training images, before training.

    For backbones built with ``insert_bn=True``. The outputs of the model do not change. The hook does nothing when
    training is resumed.

    Args:
        batches: Number of training batches in each process. Default: 8.
    """

    def __init__(self, batches: int = 8) -> None:
        self.batches = batches

    def before_train(self, runner: Runner) -> None:
        """Collect the statistics."""
        if runner.iter:
            return
        model = get_model(runner)
        batches = itertools.islice(runner.train_dataloader, self.batches)
        images = (model.data_preprocessor(data, False)["inputs"] for data in batches)
        count = collect_statistics(model.backbone, images)
        runner.logger.info(f"The batch norms after fc3 have the statistics of {count} training images.")
