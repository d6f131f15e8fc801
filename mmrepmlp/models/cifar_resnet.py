# SPDX-License-Identifier: Apache-2.0
from torch import nn

from mmrepmlp.registry import MODELS

THREE_STAGES = dict(
    stem_channels=16, base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)
)


@MODELS.register_module()
def CIFARResNet(depth: int = 56, **settings: object) -> nn.Module:
    """Build a ResNet for images of 32 x 32 pixels (ResNet paper, arXiv 1512.03385, section 4.2).

    It is mmpretrain's, with three stages of basic blocks that are 16, 32 and 64 channels wide. Shortcuts between stages
    are projections.

    Args:
        depth: Number of layers, 6 n + 2 for n blocks in each stage. Default: 56.
        **settings: Further arguments of mmpretrain's ``ResNet_CIFAR``.

    Returns:
        The backbone; it maps (N, 3, H, W) to a tuple of one feature map (N, 64, H / 4, W / 4).

    Raises:
        ValueError: ``depth`` is not one of 8, 14, 20, ...
    """
    from mmpretrain.models.backbones import ResNet_CIFAR

    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth={depth}: expected 6 n + 2 layers for n blocks in each stage, such as 20, 56 or 110.")
    basic, _ = ResNet_CIFAR.arch_settings[18]
    architecture = dict(arch_settings={depth: (basic, [blocks] * 3)}, img_size=32)
    return type("CIFARResNet", (ResNet_CIFAR,), architecture)(depth, **{**THREE_STAGES, **settings})
