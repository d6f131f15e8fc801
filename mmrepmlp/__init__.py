# SPDX-License-Identifier: Apache-2.0
"""RepMLPNet, a re-parameterizable vision MLP, as a backbone for OpenMMLab.

Importing the package makes ``type='mmrepmlp.RepMLPNet'`` known to every OpenMMLab registry and lets MMEngine read and
resume its own checkpoints on current torch, without running code that a checkpoint may hold; :mod:`mmengine_compat`
lists every such effect.
"""

import mmcv
import mmengine
from mmengine.utils import digit_version

from . import mmengine_compat, registry
from .reparam import switch_to_deploy
from .version import __version__

for package, lowest, below in ((mmengine, "0.10.4", "1.0.0"), (mmcv, "2.0.0", "3.0.0")):
    if not digit_version(lowest) <= digit_version(package.__version__) < digit_version(below):
        raise ImportError(
            f"{package.__name__} {package.__version__} is installed; mmrepmlp works with {lowest} up to, but not "
            f"including, {below}."
        )

mmengine_compat.install()

__all__ = ["__version__", "registry", "switch_to_deploy"]
