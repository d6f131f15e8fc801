# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from mmrepmlp.checkpoint.repmlp_resnet import adapt_repmlp_resnet
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import Reparameterizable, switch_to_deploy

from ..layers import PaddedConvBN, PlainBottleneck, RepMLPBottleneck, RepMLPLightBlock
from ..layers.arguments import check_positive
from .arch import check_arguments, resolve_indices, to_pair
from .repmlp_resnet_arch import DEPTHS, check_partitions, map_sizes, resolve_repmlp, resolve_steps
from .staged import StagedBackbone


@MODELS.register_module()
class RepMLPResNet(StagedBackbone, BaseModule, Reparameterizable):
    """RepMLP-ResNet: a ResNet-50 with RepMLP in the blocks of some stages (arXiv 2105.01883).

    The first block of each stage is ResNet's own, and so are all blocks of other stages. State dicts of the authors'
    code load in both forms; in deploy form so do training-form ones, folded on the way in.

    **Images have one size**, ``img_size``: the fully connected layers of the global perceptron have weights for each
    partition of a map. Images of other sizes are refused, unless every map with RepMLP is one partition as built, which
    has no global perceptron: then sizes whose maps are whole numbers of partitions pass.

    Args:
        block: What replaces ResNet's blocks: ``"light"``, between 1x1 convolutions, for speed, or ``"bottleneck"``,
            between 3x3 ones, for accuracy. Default: "light".
        depth: Number of layers; 50. Default: 50.
        img_size: Height and width of the images in pixels. Default: 224.
        repmlp_stages: Stages with RepMLP, from 0. Default: (1, 2), the paper's c3 and c4.
        h: Height of a partition in pixels; divides that of the stages' maps. Default: 7.
        w: Width of a partition in pixels. Default: 7.
        reparam_conv_kernels: Sides of the local perceptron's kernels in pixels, odd; None for no local perceptron.
            Default: (1, 3, 5).
        reduction: What the 3x3 convolutions of ``block="bottleneck"`` divide the channels by in front of RepMLP: an
            int, or one for each of ``repmlp_stages``. Default: None, 2 in stages 0 and 1 and 4 in stages 2 and 3.
        groups: Number of groups of the partition and the local perceptron: an int, or one for each of
            ``repmlp_stages``. Default: None, 4 for ``block="light"`` and 8 for ``block="bottleneck"``.
        globalperceptron_reduction: What the width inside the global perceptron is divided by: an int, or one for each
            of ``repmlp_stages``. Default: 1.
        in_channels: Number of image channels. Default: 3.
        base_channels: Number of channels of the stem; the stages have 4, 8, 16 and 32 times as many. Default: 64.
        strides: Stride of the first block of each stage. Default: (1, 2, 2, 2).
        dilations: Distance of neighbouring taps, stage by stage, of the 3x3 convolutions of ResNet's own blocks.
            Default: (1, 1, 1, 1).
        out_indices: Stages whose maps to return; negative ones count from the end. Stages behind the last of them are
            not built, since no gradient would reach them, and their tensors in a state dict are ignored.
            Default: (3, ).
        frozen_stages: Stages to freeze: -1 for none, 0 for the stem, k for the stem and the first k stages.
            Default: -1.
        norm_eval: Whether batch norms stay in eval mode during training. Default: False.
        with_cp: Whether to recompute each block in the backward pass to save memory. Default: False.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of its range; the message says what is expected.
    """

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
        **unknown: object,
    ) -> None:
        check_arguments(type(self), unknown)
        super().__init__(init_cfg=init_cfg)
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth!r}: expected one of {', '.join(map(str, DEPTHS))}.")
        check_positive(in_channels=in_channels, base_channels=base_channels)
        self.depths, self.img_size = DEPTHS[depth], to_pair("img_size", img_size)
        self.channels = [base_channels * 4 * 2**stage for stage in range(len(self.depths))]
        self.out_indices = resolve_indices(out_indices, len(self.depths))
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.check_frozen_stages(len(self.depths))
        strides, dilations = resolve_steps(strides=strides, dilations=dilations)
        repmlp = resolve_repmlp(
            block,
            repmlp_stages,
            reduction=reduction,
            groups=groups,
            globalperceptron_reduction=globalperceptron_reduction,
        )
        # What loading needs to rebuild the training form that a checkpoint comes from.
        self._training_form = dict(
            block=block,
            depth=depth,
            img_size=self.img_size,
            repmlp_stages=repmlp_stages,
            h=h,
            w=w,
            reparam_conv_kernels=reparam_conv_kernels,
            reduction=reduction,
            groups=groups,
            globalperceptron_reduction=globalperceptron_reduction,
            in_channels=in_channels,
            base_channels=base_channels,
            strides=strides,
            dilations=dilations,
            out_indices=self.out_indices,
            norm_cfg=norm_cfg,
        )

        settings = dict(norm_cfg=norm_cfg, with_cp=with_cp, deploy=deploy)
        self.stage0 = PaddedConvBN(in_channels, base_channels, 7, stride=2, norm_cfg=norm_cfg, deploy=deploy)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width = base_channels
        for i, size in enumerate(map_sizes(self.img_size, strides)[: self.out_indices[-1] + 1]):
            channels, depth, own = self.channels[i], self.depths[i], repmlp.get(i)
            if own is not None:
                check_partitions(self.img_size, i, size, h, w)
            blocks = [PlainBottleneck(width, channels, strides[i], dilations[i], **settings)]
            for _ in range(depth - 1):
                if own is None:
                    blocks.append(PlainBottleneck(channels, channels, 1, dilations[i], **settings))
                    continue
                arguments = dict(own, map_size=size, h=h, w=w, reparam_conv_kernels=reparam_conv_kernels)
                if block == "bottleneck":
                    blocks.append(RepMLPBottleneck(channels, arguments.pop("reduction"), arguments, **settings))
                else:
                    blocks.append(RepMLPLightBlock(channels, arguments, **settings))
            self.add_module(f"stage{i + 1}", Sequential(*blocks))
            width = channels
        self.freeze_stages()

    @property
    def stages(self) -> list[nn.Module]:
        """The stages that are built, without the stem."""
        return [self.get_submodule(f"stage{i + 1}") for i in range(self.out_indices[-1] + 1)]

    @property
    def deploy(self) -> bool:
        """Whether every part is in deploy form."""
        parts = [module for module in self.modules() if module is not self and isinstance(module, Reparameterizable)]
        return all(part.deploy for part in parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps.

        Args:
            x: Images, shape (N, in_channels, H, W), of ``img_size``.

        Returns:
            The map of each stage in ``out_indices``: shape (N, channels[i], ceil(H / stride), ceil(W / stride)), with
            strides 4, 8, 16, 32 by default.

        Raises:
            ValueError: The images have another size than the network was built for.
        """
        outs = []
        x = self.maxpool(self.stage0(x))
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def switch_to_deploy(self) -> None:
        """Convert to deploy form in place: a network without batch norms and local branches, same outputs."""
        for child in self.children():
            switch_to_deploy(child)

    def layers(self) -> list[list[nn.Module]]:
        """The stem, and each block."""
        return [[self.stage0], *([block] for stage in self.stages for block in stage)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        adapt_repmlp_resnet(self, state_dict, prefix, errors=args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def build_training_form(self) -> "RepMLPResNet":
        """Build the network that this one is, or would be, the deploy form of, on the meta device."""
        with torch.device("meta"):
            return RepMLPResNet(**self._training_form)
