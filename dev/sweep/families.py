# SPDX-License-Identifier: Apache-2.0
"""The config families of the installed frameworks, and the documented way to swap the backbone of a config."""

import copy
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from mmrepmlp.verbs.explain import ExplainedError, explained

PACKAGES = ("mmpretrain", "mmseg", "mmdet")
# Tiles of an image of 64 pixels; the smallest set-sharing that the channels allow to differ from stage to stage.
ARCH = dict(channels=[16, 32, 64, 128], depths=[1, 1, 1, 1], sharesets_nums=[1, 2, 4, 8])
STRIDES = (4, 8, 16, 32)


def config_root(package: str) -> Path:
    """Folder of the configs of an installed package."""
    spec = find_spec(package)
    return Path(spec.origin).parent / ".mim" / "configs" if spec and spec.origin else Path("no package")


def find_families(package: str) -> dict[str, list[Path]]:
    """Config families of an installed package: the folders of its configs, and the configs of each.

    Configs of a ResNet-50 come first, and short names before long ones, which name variants.
    """
    root, families = config_root(package), {}
    for folder in sorted(path for path in root.glob("*") if path.is_dir() and path.name != "_base_"):
        files = sorted(folder.rglob("*.py"), key=lambda file: ("r50" not in file.name, len(file.name), file.name))
        if files:
            families[folder.name] = files
    return families


def iter_configs(package: str, files: Sequence[Path]) -> Iterator[tuple[Path, Config]]:
    """Iterate over the configs of a family whose model has a backbone, those of the package's own scope first.

    Others are for another framework: mmpretrain has configs that fine-tune its backbones in detectors.
    """
    others = []
    for file in files:
        cfg = Config.fromfile(file)
        if isinstance(cfg.get("model"), dict) and isinstance(cfg.model.get("backbone"), dict):
            if cfg.get("default_scope") == package:
                yield file, cfg
            else:
                others.append((file, cfg))
    yield from others


def swap_backbone(cfg: Config, maps: Sequence[Tensor], side: int, run: Callable[[Config], object]) -> dict[str, object]:
    """Put a small RepMLPNet into a config, and follow the advice that its errors get until it runs.

    Args:
        cfg: The config. Changed in place.
        maps: What the config's own backbone computes of an image.
        side: Side of that image in pixels.
        run: What builds the config's model and calls it.

    Returns:
        The settings that the advice changed, by dotted names.

    Raises:
        ExplainedError: A part does not fit, and no setting is known that would make it.
        Exception: Of the framework, where something else is wrong.
    """
    cfg.model.backbone = dict(type="mmrepmlp.RepMLPNet", arch=ARCH, img_size=64, out_indices=choose_stages(maps, side))
    changed: dict[str, object] = {}
    while True:
        try:
            with explained(cfg):
                run(cfg)
            return changed
        except ExplainedError as error:
            if not error.options or error.options.items() <= changed.items():
                raise
            cfg.merge_from_dict(copy.deepcopy(error.options))
            changed.update(error.options)


def choose_stages(maps: Sequence[Tensor], side: int) -> tuple[int, ...]:
    """The stages that give as many maps as another backbone does, at its strides where those are ours.

    Of stacked hourglasses, which give maps of equal shape at stride 4, one map stands for all.

    Raises:
        ValueError: There are more maps than stages.
    """
    if len(maps) > len(STRIDES):
        raise ValueError(f"the heads take {len(maps)} maps, a RepMLPNet has {len(STRIDES)}")
    strides = [round(side / x.size(-1)) if isinstance(x, Tensor) and x.dim() == 4 else 0 for x in maps]
    if set(strides) == {STRIDES[0]}:
        return (0,)
    if len(set(strides)) == len(strides) and set(strides) <= set(STRIDES):
        return tuple(STRIDES.index(stride) for stride in strides)
    return tuple(range(len(STRIDES)))[-len(maps) :]


def random_squares(number: int, channels: int, side: int) -> Tensor:
    """Random images, shape (number, channels, side, side), the same in every call."""
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(0))
