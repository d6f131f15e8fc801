# SPDX-License-Identifier: Apache-2.0
"""Deploy forms of networks that have no argument to be built in it."""

from mmengine.registry import MODELS as ROOT
from torch import nn

from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import switch_to_deploy


@MODELS.register_module()
def DeployForm(module: dict, **settings: object) -> nn.Module:
    """Build a model or a part of one, such as a backbone of timm, and convert it: what deploy configs name.

    Args:
        module: Config of the training form, looked up in the current default scope.
        **settings: Further arguments of it, where it does not set them.
    """
    return switch_to_deploy(ROOT.build({**settings, **module}))
