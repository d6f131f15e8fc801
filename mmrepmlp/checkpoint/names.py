# SPDX-License-Identifier: Apache-2.0
"""Infer the names, the form and the architecture of a network from its state dict."""

import itertools
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# From the authors' names of modules to ours, which are mmpretrain's.
SYNONYMS = {
    "conv_embedding.conv": "patch_embed.projection",
    "conv_embedding.bn": "patch_embed.norm",
    "embeds": "downsample_layers",
    "head_norm": "final_norm",
    "prebn1": "norm1",
    "prebn2": "norm2",
    "gp.fc1": "gp.conv1.conv",
    "gp.fc2": "gp.conv2.conv",
}
FIRST_BLOCK = "stages.0.0.repmlp_block."
# Layers of a unit whose filters compression removes, by the arguments of RepMLPNet that set the number of filters.
WIDTHS = dict(ffn_channels="ffn_block.ffn_fc1.conv", gp_channels="repmlp_block.gp.conv1.conv")
UNIT = re.compile(r"^stages\.(\d+)\.(\d+)\.(.+)$")


def to_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a RepMLPNet's tensors to the authors' names."""
    return rename(state, {ours: theirs for theirs, ours in SYNONYMS.items()})


def rename(state: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename modules, old name to new, where whole components of a dotted path match."""
    patterns = [(re.compile(rf"(?<![^.]){re.escape(old)}(?![^.])"), new) for old, new in modules.items()]
    renamed = {}
    for name, value in state.items():
        for pattern, new in patterns:
            name = pattern.sub(new, name)
        renamed[name] = value
    return renamed


def backbone_part(
    state: Mapping[str, Tensor], network: str, landmark: str, heads: tuple[str, ...]
) -> dict[str, Tensor]:
    """Select the tensors of a network from the state dict of a whole model, without prefix and head.

    If there are several networks, it is the model itself or its ``backbone``. Name, landmark and heads of the network
    are those of its ``Origin``.
    """
    pattern = re.compile(rf"^((?:.+\.)?){re.escape(landmark)}")
    prefixes = sorted({match[1] for match in map(pattern.match, state) if match})
    if not prefixes and any(name.startswith("backbone.") for name in state):
        prefixes = ["backbone."]
    prefix = next((usual for usual in ("", "backbone.") if usual in prefixes), prefixes[0] if prefixes else "")
    if prefix and prefix != "backbone." and len(prefixes) > 1:
        raise ValueError(
            f"The state dict holds several {network}s, under {', '.join(map(repr, prefixes))}. Name the one to load: "
            f"init_cfg=dict(type='Pretrained', checkpoint=..., prefix='{prefix}')."
        )
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in inside.items() if not name.startswith(heads)}


def form_of(names: Iterable[str]) -> str:
    """Infer a network's form from the names of its tensors: ``"training"``; ``"injected"``, where only the blocks of a
    RepMLPNet are converted, the result of the authors' and mmpretrain's conversion; or ``"deploy"``."""
    names = list(names)
    if any(".fc3_bn." in name for name in names):
        return "training"
    if not any(name.endswith(".running_mean") for name in names):
        return "deploy"
    return "injected" if any(name.endswith(".fc3.bias") for name in names) else "training"


def architecture_of(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Infer a network's architecture from the shapes of the tensors of a backbone with our names, in any form.

    Returns what could be inferred: ``channels``, ``depths``, ``sharesets_nums``, ``tile_pixels``, ``ffn_channels`` and
    ``gp_channels``, one entry for each stage up to the first that is missing; ``reparam_conv_kernels``, in training
    form; ``in_channels`` and ``patch_size``.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items() if value.dim() > 1}
    units = [(int(stage), int(unit), rest) for stage, unit, rest in (m.groups() for m in map(UNIT.match, shapes) if m)]
    found: dict[str, object] = {}
    if units:
        present = {stage for stage, _, _ in units}
        stages = range(next(i for i in itertools.count() if i not in present))
        found["depths"] = [max((u for s, u, _ in units if s == stage), default=-1) + 1 for stage in stages]
        fc3 = [shapes.get(f"stages.{i}.0.repmlp_block.fc3.weight") for i in stages]
        conv1 = [shapes.get(f"stages.{i}.0.repmlp_block.gp.conv1.conv.weight") for i in stages]
        if all(fc3):
            found["sharesets_nums"] = [rows // pixels for rows, pixels, *_ in fc3]
            found["tile_pixels"] = [pixels for _, pixels, *_ in fc3]
        if all(conv1):
            found["channels"] = [inputs for _, inputs, *_ in conv1]
        for argument, layer in WIDTHS.items():
            names = [[f"stages.{i}.{j}.{layer}.weight" for j in range(found["depths"][i])] for i in stages]
            if all(name in shapes for stage in names for name in stage):
                found[argument] = [[shapes[name][0] for name in stage] for stage in names]
        if form_of(state) == "training":
            kernels = {re.search(r"\.repconv(\d+)\.", rest) for _, _, rest in units}
            found["reparam_conv_kernels"] = sorted({int(match[1]) for match in kernels if match})
    if "patch_embed.projection.weight" in shapes:
        _, found["in_channels"], *patch = shapes["patch_embed.projection.weight"]
        found["patch_size"] = patch
    return found
