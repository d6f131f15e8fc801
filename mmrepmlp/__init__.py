# SPDX-License-Identifier: Apache-2.0
"""RepMLPNet, a re-parameterizable vision MLP, as a backbone for OpenMMLab.

Importing the package makes ``type='mmrepmlp.RepMLPNet'`` known to every OpenMMLab registry and lets MMEngine read and
resume its own checkpoints on current torch, without running code that a checkpoint may hold; :mod:`mmengine_compat`
lists all of these side effects. Importing :mod:`mmrepmlp.registry` applies them. The command ``mmrepmlp`` does so only
when a verb starts, so that ``--help`` does not wait for the frameworks.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .version import __version__

__all__ = ["RepMLPNet", "RepMLPResNet", "RepOptVGG", "__version__", "registry", "switch_to_deploy"]

NETWORKS = dict.fromkeys(("RepMLPNet", "RepMLPResNet", "RepOptVGG"), ".models")
ON_FIRST_USE = {"registry": ".registry", "switch_to_deploy": ".reparam", **NETWORKS}


def is_command(argv: Sequence[str], orig_argv: Sequence[str]) -> bool:
    """Whether the process runs the command ``mmrepmlp`` or ``python -m mmrepmlp``; False if in doubt.

    Args:
        argv: ``sys.argv``, which starts with ``-m`` while Python looks for the module to run.
        orig_argv: ``sys.orig_argv``.
    """
    if argv[0] == "-m":
        return orig_argv[-len(argv)] == "mmrepmlp"
    return os.path.split(os.path.abspath(argv[0])) == (os.path.dirname(sys.executable), "mmrepmlp")


def __getattr__(name: str) -> object:
    """Import a name on first use (PEP 562)."""
    if name not in ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(ON_FIRST_USE[name], __name__)
    return getattr(module, name, module)


if not is_command(getattr(sys, "argv", None) or [""], sys.orig_argv):
    from . import registry
