# SPDX-License-Identifier: Apache-2.0
"""All global side effects of importing mmrepmlp: :data:`EFFECTS`. Each says what would go wrong without it."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import CheckpointLoader

from .checkpoint import LOADERS


def read_checkpoints_safely() -> None:
    """Replace MMEngine's checkpoint loaders: local, http(s), torchvision://, open-mmlab://, mmcls://, s3://, pavi://.

    MMEngine's loaders execute code that a file may contain, on torch < 2.6; those of onedl-mmengine do so on any torch.
    On newer torch, open-mmlab's fail on MMEngine's own checkpoints. With ours, load_from, --resume and
    init_cfg=dict(type='Pretrained') behave alike, damaged files are explained, and safetensors can be read.
    """
    for pattern, loader in LOADERS.items():
        registered = CheckpointLoader._schemes.get(pattern)
        if registered is None or registered.__module__ == CheckpointLoader.__module__:  # keep a user's loader
            CheckpointLoader.register_scheme(pattern, loader, force=True)


def name_packages_by_their_modules() -> None:
    """Register the packages behind mmseg:: and mmrepmlp:: in configs in MMEngine's MODULE2PACKAGE, by module name.

    MMEngine locates packages by distribution name, which differs for onedl's and fails for editable installs; a module
    name always works.
    """
    MODULE2PACKAGE["mmrepmlp"] = "mmrepmlp.registry"
    if find_spec("mmseg"):  # else MMEngine's message names what to install
        MODULE2PACKAGE["mmseg"] = "mmseg"


def link_configs_of_clone() -> None:
    """Create mmrepmlp/.mim, where MMEngine looks for mmrepmlp::..., for a clone on PYTHONPATH, as installing does."""
    package = Path(__file__).parent
    for name in ("configs", "tools", "model-index.yml") if (package.parent / "model-index.yml").exists() else ():
        with suppress(OSError):  # the link exists, or the clone is read-only
            (package / ".mim").mkdir(exist_ok=True)
            (package / ".mim" / name).symlink_to(Path("..", "..", name))


EFFECTS = (read_checkpoints_safely, name_packages_by_their_modules, link_configs_of_clone)


def install() -> None:
    """Apply all :data:`EFFECTS`. Importing mmrepmlp.registry calls it once; calling it again changes nothing."""
    for effect in EFFECTS:
        effect()
