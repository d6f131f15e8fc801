# SPDX-License-Identifier: Apache-2.0
"""The deploy form of networks without an argument ``deploy``."""

from mmengine.registry import MODELS as ROOT
from torch import nn

from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import switch_to_deploy


@MODELS.register_module()
def DeployForm(module: dict, **settings: object) -> nn.Module:
    """Build a model, or a part of one such as a timm backbone, and convert it to deploy form.

    Deploy configs use it for networks without an argument ``deploy``.

    Args:
        module: Config of the training form, looked up in the current default scope.
        **settings: Further arguments of the module, where its config does not set them.

    Returns:
        The module in deploy form.
    """
    return switch_to_deploy(ROOT.build({**settings, **module}))
