# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a RepMLP-ResNet mean for each of its four stages."""

from collections.abc import Sequence

DEPTHS = {50: (3, 4, 6, 3)}
BLOCKS = ("light", "bottleneck")
STAGES = 4
# The paper's choice for the stages c2, c3, c4 and c5 (section 4.2).
REDUCTIONS = (2, 2, 4, 4)
GROUPS = dict(light=4, bottleneck=8)


def resolve_repmlp(
    block: str,
    stages: Sequence[int],
    reduction: int | Sequence[int] | None,
    groups: int | Sequence[int] | None,
    globalperceptron_reduction: int | Sequence[int],
) -> dict[int, dict[str, int]]:
    """Distribute the arguments that RepMLP blocks have to the stages that have such blocks.

    Returns:
        By stage, ``groups``, ``globalperceptron_reduction`` and, for ``block="bottleneck"``, ``reduction``.

    Raises:
        ValueError: An argument is out of its range.
    """
    if block not in BLOCKS:
        raise ValueError(f"block={block!r}: expected one of {', '.join(map(repr, BLOCKS))}.")
    stages = (stages,) if isinstance(stages, int) else tuple(stages)
    if any(not isinstance(i, int) or not 0 <= i < STAGES for i in stages) or len(set(stages)) < len(stages):
        raise ValueError(f"repmlp_stages={stages}: expected distinct ints from 0 to {STAGES - 1}.")
    arguments = dict(groups=GROUPS[block] if groups is None else groups)
    arguments["globalperceptron_reduction"] = globalperceptron_reduction
    if block == "bottleneck":
        arguments["reduction"] = [REDUCTIONS[i] for i in stages] if reduction is None else reduction
    elif reduction is not None:
        raise ValueError(f"reduction={reduction!r} has no meaning for block='light': leave it out.")
    values = {name: per_stage(name, value, stages) for name, value in arguments.items()}
    return {stage: {name: values[name][i] for name in values} for i, stage in enumerate(stages)}


def per_stage(name: str, value: int | Sequence[int], stages: Sequence[int]) -> list[int]:
    """Repeat an int for each stage, or check that there is one for each.

    Raises:
        ValueError: There are more or fewer, or one is not positive.
    """
    values = list(value) if isinstance(value, Sequence) else [value] * len(stages)
    if len(values) != len(stages) or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(
            f"{name}={value!r}: expected a positive int, or one for each of repmlp_stages={tuple(stages)}."
        )
    return values


def resolve_steps(**arguments: Sequence[int]) -> list[tuple[int, ...]]:
    """Check arguments that have a positive int for each stage.

    Raises:
        ValueError: One does not.
    """
    for name, value in arguments.items():
        if (
            not isinstance(value, Sequence)
            or len(value) != STAGES
            or any(not isinstance(v, int) or v < 1 for v in value)
        ):
            raise ValueError(f"{name}={value!r}: expected {STAGES} positive ints, one for each stage.")
    return [tuple(value) for value in arguments.values()]


def map_sizes(img_size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width in pixels of the map of each stage, behind the stem's two strides of 2."""
    sizes, size = [], img_size
    for stride in (2, 2, *strides):
        size = tuple((side - 1) // stride + 1 for side in size)
        sizes.append(size)
    return sizes[2:]


def check_partitions(img_size: tuple[int, int], stage: int, size: tuple[int, int], h: int, w: int) -> None:
    """Check that the map of a stage is a whole number of partitions.

    Raises:
        ValueError: It is not.
    """
    if all(isinstance(part, int) and part > 0 for part in (h, w)) and (size[0] % h or size[1] % w):
        raise ValueError(
            f"img_size={img_size}: the map of stage {stage} has {size[0]}x{size[1]} pixels, which is no whole number "
            f"of partitions of h={h} by w={w}. Set h and w to divisors, or another img_size."
        )
