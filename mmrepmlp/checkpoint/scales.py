# SPDX-License-Identifier: Apache-2.0
"""Read the scales that a hyper-search of RepOptVGG found."""

import re
from collections.abc import Mapping

from mmengine.runner import CheckpointLoader
from torch import Tensor

from .unwrap import unwrap

SCALE = re.compile(r"(?:^|\.)(stage\d(?:\.\d+)?)\.scale_(conv|1x1|identity)\.weight$")


def read_scales(
    path: str, expected: Mapping[str, Mapping[str, tuple[int, ...]]], ignored: tuple[str, ...] = ()
) -> dict[str, dict[str, Tensor]]:
    """Read scales of blocks from the checkpoint of a hyper-search, or from a file that only has the scales.

    Args:
        path: Path or address of the file; a scale has a name such as ``stage1.0.scale_conv.weight``.
        expected: Shapes of the scales that the network needs, by names of blocks and parts.
        ignored: Prefixes of the names of scales to leave out, e.g. ``"stage4."``. Default: none.

    Returns:
        The scales, by names of blocks and parts.

    Raises:
        ValueError: The file has no scales, or those of another network.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in unwrap(CheckpointLoader.load_checkpoint(path, "cpu")).items():
        match = SCALE.search(name)
        if match and not f"{match[1]}.".startswith(ignored):
            found.setdefault(match[1], {})[match[2]] = value
    if not found:
        raise ValueError(f"scales={path} has no scales: expected names such as stage1.0.scale_conv.weight.")
    for block in expected | found:
        shapes = {part: tuple(scale.shape) for part, scale in found.get(block, {}).items()}
        wanted = dict(expected.get(block, {}))
        if shapes != wanted:
            raise ValueError(
                f"scales={path} are those of another network: {block} has {shapes}, expected {wanted}. Search with the "
                "arch that is to be trained."
            )
    return found
