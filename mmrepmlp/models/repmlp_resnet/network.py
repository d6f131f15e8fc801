# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from mmengine.model import Sequential
from torch import Tensor, nn

from mmrepmlp.checkpoint.adapt import REPMLP_RESNET
from mmrepmlp.registry import MODELS

from ..backbone import StagedBackbone, check_per_stage, check_positive, to_pair
from .block import padded_conv, plain_bottleneck, repmlp_bottleneck, repmlp_light_block

DEPTHS = {50: (3, 4, 6, 3)}
BLOCKS = ("light", "bottleneck")
STAGES = 4
# The paper's choice for the stages c2, c3, c4 and c5 (section 4.2).
REDUCTIONS = (2, 2, 4, 4)
GROUPS = dict(light=4, bottleneck=8)


@MODELS.register_module()
class RepMLPResNet(StagedBackbone):
    """RepMLP-ResNet: a ResNet-50 with RepMLP in the blocks of some stages (arXiv 2105.01883).

    The first block of each stage, and all blocks of the other stages, are those of ResNet. State dicts of the authors'
    code load in both forms. The deploy form also loads state dicts in training form, and fuses them.

    **Images have one size**, ``img_size``: the fully connected layers of the global perceptron have weights for each
    partition of a feature map. Images of other sizes raise an error, unless every feature map with RepMLP is one
    partition at ``img_size``. There is no global perceptron then, and images may have any size whose feature maps are
    whole numbers of partitions.

    Args:
        block: Block with RepMLP that replaces ResNet's: ``"light"``, between 1x1 convolutions, for speed, or
            ``"bottleneck"``, between 3x3 ones, for accuracy. Default: "light".
        depth: Number of layers of the ResNet; only 50 is supported. Default: 50.
        img_size: Height and width of the images in pixels. Default: 224.
        repmlp_stages: Stages with RepMLP, from 0. Default: (1, 2), the paper's c3 and c4.
        h: Height of a partition in pixels; divides that of the stages' feature maps. Default: 7.
        w: Width of a partition in pixels. Default: 7.
        reparam_conv_kernels: Kernel sizes of the local perceptron in pixels, odd; None for no local perceptron.
            Default: (1, 3, 5).
        reduction: Factor by which the 3x3 convolution before RepMLP reduces the channels in ``block="bottleneck"``: an
            int, or one for each of ``repmlp_stages``. Default: None, 2 in stages 0 and 1 and 4 in stages 2 and 3.
        groups: Number of groups of the partition and the local perceptron: an int, or one for each of
            ``repmlp_stages``. Default: None, 4 for ``block="light"`` and 8 for ``block="bottleneck"``.
        globalperceptron_reduction: Factor by which the global perceptron reduces its inner width: an int, or one for
            each of ``repmlp_stages``. Default: 1.
        in_channels: Number of image channels. Default: 3.
        base_channels: Number of channels of the stem; the stages have 4, 8, 16 and 32 times as many. Default: 64.
        strides: Stride of the first block of each stage. Default: (1, 2, 2, 2).
        dilations: Dilation of the 3x3 convolutions of ResNet's blocks in each stage. Default: (1, 1, 1, 1).
        out_indices: Stages whose feature maps are returned; negative numbers count from the end. Stages after the last
            of these are not built, since no gradient would reach them, and their tensors in a state dict are ignored.
            Default: (3, ).
        frozen_stages: Stages to freeze: -1 for none, 0 for the stem, k for the stem and the first k stages.
            Default: -1.
        norm_eval: Whether batch norms stay in eval mode during training. Default: False.
        with_cp: Whether to recompute each block in the backward pass to save memory. Default: False.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of range; the message says what is expected.
    """

    origin = REPMLP_RESNET

    def __init__(
        self,
        block: str = "light",
        depth: int = 50,
        img_size: int | tuple[int, int] = 224,
        repmlp_stages: Sequence[int] = (1, 2),
        h: int = 7,
        w: int = 7,
        reparam_conv_kernels: Sequence[int] | None = (1, 3, 5),
        reduction: int | Sequence[int] | None = None,
        groups: int | Sequence[int] | None = None,
        globalperceptron_reduction: int | Sequence[int] = 1,
        in_channels: int = 3,
        base_channels: int = 64,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: int | Sequence[int] = (3,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth!r}: expected one of {', '.join(map(str, DEPTHS))}.")
        check_positive(in_channels=in_channels, base_channels=base_channels)
        super().__init__(STAGES, out_indices, frozen_stages, norm_eval, deploy, init_cfg)
        self.depths, self.img_size = DEPTHS[depth], to_pair("img_size", img_size)
        self.channels = [base_channels * 4 * 2**stage for stage in range(STAGES)]
        check_per_stage(STAGES, strides=strides, dilations=dilations)
        repmlp = resolve_repmlp(
            block,
            repmlp_stages,
            reduction=reduction,
            groups=groups,
            globalperceptron_reduction=globalperceptron_reduction,
        )
        settings = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.stage0 = padded_conv(in_channels, base_channels, 7, 2, **settings)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width, settings = base_channels, dict(settings, with_cp=with_cp)
        for i, size in enumerate(map_sizes(self.img_size, strides)[: self.num_built]):
            channels, depth = self.channels[i], self.depths[i]
            blocks = [plain_bottleneck(width, channels, strides[i], dilations[i], **settings)]
            for _ in range(depth - 1):
                if i not in repmlp:
                    blocks.append(plain_bottleneck(channels, channels, 1, dilations[i], **settings))
                    continue
                arguments = dict(repmlp[i], map_size=size, h=h, w=w, reparam_conv_kernels=reparam_conv_kernels)
                if block == "bottleneck":
                    blocks.append(repmlp_bottleneck(channels, arguments.pop("reduction"), arguments, **settings))
                else:
                    blocks.append(repmlp_light_block(channels, arguments, **settings))
            self.add_module(f"stage{i + 1}", Sequential(*blocks))
            width = channels
        self.freeze_stages()

    @property
    def stages(self) -> list[nn.Module]:
        """The stages that are built, without the stem."""
        return [self.get_submodule(f"stage{i + 1}") for i in range(self.num_built)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps.

        Args:
            x: Images, shape (N, in_channels, H, W), of ``img_size``.

        Returns:
            The feature map of each stage in ``out_indices``: shape (N, channels[i], ceil(H / stride),
            ceil(W / stride)), with strides 4, 8, 16, 32 by default.

        Raises:
            ValueError: The images have another size than the network was built for.
        """
        return self.run_stages(self.maxpool(self.stage0(x)))


def resolve_repmlp(
    block: str,
    stages: Sequence[int],
    reduction: int | Sequence[int] | None,
    groups: int | Sequence[int] | None,
    globalperceptron_reduction: int | Sequence[int],
) -> dict[int, dict[str, int]]:
    """Return the arguments of the RepMLP blocks for each stage that has them."""
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
        raise ValueError(f"reduction={reduction!r} has no effect with block='light': leave it out.")
    values = {name: per_stage(name, value, stages) for name, value in arguments.items()}
    return {stage: {name: values[name][i] for name in values} for i, stage in enumerate(stages)}


def per_stage(name: str, value: int | Sequence[int], stages: Sequence[int]) -> list[int]:
    """Repeat an int for each stage, or check that there is one for each."""
    values = list(value) if isinstance(value, Sequence) else [value] * len(stages)
    if len(values) != len(stages) or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(
            f"{name}={value!r}: expected a positive int, or one for each of repmlp_stages={tuple(stages)}."
        )
    return values


def map_sizes(img_size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return height and width in pixels of the feature map of each stage, after the stem's two strides of 2."""
    sizes, size = [], img_size
    for stride in (2, 2, *strides):
        size = tuple((side - 1) // stride + 1 for side in size)
        sizes.append(size)
    return sizes[2:]
