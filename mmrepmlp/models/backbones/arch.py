# SPDX-License-Identifier: Apache-2.0
"""The named architectures, and checks of the arguments that describe one."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

ARCHITECTURES = {
    ("t", "tiny"): dict(channels=[64, 128, 256, 512], depths=[2, 2, 6, 2], sharesets_nums=[1, 4, 16, 128]),
    ("b", "base"): dict(channels=[96, 192, 384, 768], depths=[2, 2, 12, 2], sharesets_nums=[1, 4, 32, 128]),
    ("d", "deep"): dict(channels=[80, 160, 320, 640], depths=[2, 2, 18, 2], sharesets_nums=[1, 4, 16, 128]),
    ("l", "large"): dict(channels=[96, 192, 384, 768], depths=[2, 2, 18, 2], sharesets_nums=[1, 4, 32, 256]),
}
KEYS = ("channels", "depths", "sharesets_nums")
# Arguments of other backbones that the frameworks hand on, and what to set instead.
INSTEAD = {
    "pretrained": "Segmentors and detectors hand model.pretrained, the weights of another backbone, on to it: set "
    "model.pretrained=None, and init_cfg=dict(type='Pretrained', checkpoint=...) for weights of this one.",
}


def check_arguments(network: type, unknown: Mapping[str, object]) -> None:
    """Explain arguments that a network does not have.

    Raises:
        ValueError: There are any; the message names those that are spelled alike.
    """
    if not unknown:
        return
    known = [name for name in inspect.signature(network).parameters if name != "unknown"]
    alike = [f"{name} ({', '.join(matches)}?)" for name in unknown if (matches := get_close_matches(name, known))]
    others = [name for name in unknown if not get_close_matches(name, known)]
    advice = [INSTEAD[name] for name in unknown if name in INSTEAD]
    message = f"{network.__name__} has no argument {', '.join(alike + others)}: expected some of {', '.join(known)}."
    raise ValueError(" ".join([message, *advice]))


def resolve_arch(arch: str | dict) -> dict[str, list[int]]:
    """Look an architecture up by name, or check one that is given as a dict.

    Returns:
        The lists ``channels``, ``depths`` and ``sharesets_nums``, in this order.

    Raises:
        ValueError: The name is unknown or the dict is not a valid architecture.
    """
    if isinstance(arch, str):
        for names, settings in ARCHITECTURES.items():
            if arch.lower() in names:
                return {key: list(settings[key]) for key in KEYS}
        known = ", ".join(f"{short.upper()} ({long})" for short, long in ARCHITECTURES)
        raise ValueError(
            f"arch={arch!r} is unknown: expected one of {known}, or a dict with the keys {', '.join(KEYS)}."
        )
    if not isinstance(arch, dict) or set(arch) != set(KEYS):
        given = sorted(arch) if isinstance(arch, dict) else repr(arch)
        raise ValueError(f"arch={given}: expected a name or a dict with exactly the keys {', '.join(KEYS)}.")
    settings = {key: list(arch[key]) if isinstance(arch[key], Sequence) else arch[key] for key in KEYS}
    for key, values in settings.items():
        if not isinstance(values, list) or any(not isinstance(v, int) or v < 1 for v in values) or not values:
            raise ValueError(f"arch[{key!r}]={values!r}: expected a list of positive ints, one for each stage.")
    lengths = {key: len(values) for key, values in settings.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arch has lists of different lengths ({lengths}): each needs one entry for each stage.")
    for stage, (channels, _, sets) in enumerate(zip(*settings.values())):
        if channels % sets:
            raise ValueError(
                f"arch: the {channels} channels of stage {stage} are not divisible by sharesets_nums={sets}. Set "
                "sharesets_nums to a divisor of the channels."
            )
    return settings


def to_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Convert an int or a pair of ints to (height, width) in pixels."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ValueError(f"{name}={value!r}: expected a positive int or a pair (height, width) of positive ints.")
    return pair


def resolve_tiles(img_size: tuple[int, int], patch_size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Tile size (h, w) in pixels of each stage: the feature map of an image of ``img_size`` is one tile."""
    strides = [[patch * 2**stage for patch in patch_size] for stage in range(stages)]
    return [tuple(-(-side // step) for side, step in zip(img_size, stride)) for stride in strides]


def resolve_indices(out_indices: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """Check and normalize the indices of the stages to return; negative ones count from the end.

    Raises:
        ValueError: An index is out of range, given twice, or none is given.
    """
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not given or any(not isinstance(i, int) or not -stages <= i < stages for i in given):
        raise ValueError(f"out_indices={out_indices!r}: expected ints from {-stages} to {stages - 1}.")
    indices = tuple(sorted({i % stages for i in given}))
    if len(indices) < len(given):
        raise ValueError(f"out_indices={out_indices!r} names a stage twice.")
    return indices
