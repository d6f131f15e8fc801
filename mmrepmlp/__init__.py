# SPDX-License-Identifier: Apache-2.0
"""RepMLPNet, a re-parameterizable vision MLP, as a backbone for OpenMMLab.

Importing the package makes ``type='mmrepmlp.RepMLPNet'`` known to every OpenMMLab registry and lets MMEngine read and
resume its own checkpoints on current torch, without running code that a checkpoint may hold; :mod:`mmengine_compat`
lists every such effect.
"""

from .frameworks import check_frameworks

check_frameworks()  # before whatever imports them

from . import mmengine_compat, registry  # noqa: E402
from .reparam import switch_to_deploy  # noqa: E402
from .version import __version__  # noqa: E402

mmengine_compat.install()

__all__ = ["__version__", "registry", "switch_to_deploy"]
