# SPDX-License-Identifier: Apache-2.0
"""All global side effects of importing mmrepmlp: :data:`EFFECTS`, each with what would go wrong without it."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import CheckpointLoader

from .checkpoint import LOADERS


def read_checkpoints_safely() -> None:
    """Replace MMEngine's loaders: local, http(s), torchvision://, open-mmlab://, mmcls://, s3://, pavi://.

    They execute code that a file may contain: on torch < 2.6, and those of onedl-mmengine on any. On newer torch those
    of open-mmlab fail on MMEngine's own checkpoints. With ours, load_from, --resume and
    init_cfg=dict(type='Pretrained') behave alike, damaged files are explained, and safetensors are read.
    """
    for pattern, loader in LOADERS.items():
        registered = CheckpointLoader._schemes.get(pattern)
        if registered is None or registered.__module__ == CheckpointLoader.__module__:  # not somebody's own
            CheckpointLoader.register_scheme(pattern, loader, force=True)


def name_packages_by_their_modules() -> None:
    """Tell MMEngine the packages of mmseg:: and mmrepmlp:: in configs, in its MODULE2PACKAGE.

    It locates them by the name of the distribution, which is another one in onedl's line, and fails for editable
    installs; the name of a module works for any.
    """
    MODULE2PACKAGE["mmrepmlp"] = "mmrepmlp.registry"
    if find_spec("mmseg"):  # else MMEngine's message names what to install
        MODULE2PACKAGE["mmseg"] = "mmseg"


def link_configs_of_clone() -> None:
    """Link mmrepmlp/.mim of a clone on PYTHONPATH, where MMEngine looks for mmrepmlp::..., as an installation does."""
    package = Path(__file__).parent
    for name in ("configs", "tools", "model-index.yml") if (package.parent / "model-index.yml").exists() else ():
        with suppress(OSError):  # the link is there, or the clone may not be written to
            (package / ".mim").mkdir(exist_ok=True)
            (package / ".mim" / name).symlink_to(Path("..", "..", name))


EFFECTS = (read_checkpoints_safely, name_packages_by_their_modules, link_configs_of_clone)


def install() -> None:
    """Apply all :data:`EFFECTS`. Importing mmrepmlp.registry calls it once; calling it again changes nothing."""
    for effect in EFFECTS:
        effect()
