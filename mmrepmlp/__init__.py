# SPDX-License-Identifier: Apache-2.0
"""RepMLPNet, a re-parameterizable vision MLP, as a backbone for OpenMMLab.

Importing the package makes ``type='mmrepmlp.RepMLPNet'`` known to every OpenMMLab registry and lets MMEngine read and
resume its own checkpoints on current torch, without running code that a checkpoint may hold.
"""

import mmcv
import mmengine
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import digit_version

from . import registry
from .checkpoint import trust_mmengine
from .reparam import switch_to_deploy
from .version import __version__

for package, lowest, below in ((mmengine, "0.10.4", "1.0.0"), (mmcv, "2.0.0", "3.0.0")):
    if not digit_version(lowest) <= digit_version(package.__version__) < digit_version(below):
        raise ImportError(
            f"{package.__name__} {package.__version__} is installed; mmrepmlp works with {lowest} up to, but not "
            f"including, {below}."
        )

trust_mmengine()

# What `mmrepmlp::` means in a config. MMEngine finds a package by the name of its distribution, which leads nowhere in
# an editable install; the name of a module leads to its folder in any.
MODULE2PACKAGE.setdefault("mmrepmlp", "mmrepmlp.registry")

__all__ = ["__version__", "registry", "switch_to_deploy"]
