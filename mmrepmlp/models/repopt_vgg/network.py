# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from mmengine.model import Sequential
from torch import Tensor, nn

from mmrepmlp.checkpoint.adapt import REPOPT_VGG
from mmrepmlp.checkpoint.scales import read_scales
from mmrepmlp.registry import MODELS

from ..backbone import StagedBackbone, check_per_stage
from .block import LinearAddBlock, RepOptBlock

ARCHITECTURES = {
    "B1": dict(depths=[4, 6, 16, 1], channels=[128, 256, 512, 2048]),
    "B2": dict(depths=[4, 6, 16, 1], channels=[160, 320, 640, 2560]),
    "L1": dict(depths=[8, 14, 24, 1], channels=[128, 256, 512, 2048]),
    "L2": dict(depths=[8, 14, 24, 1], channels=[160, 320, 640, 2560]),
}
FORMS = ("target", "hyper_search")


@MODELS.register_module()
class RepOptVGG(StagedBackbone):
    """RepOpt-VGG, a plain stack of 3x3 convolutions that trains as RepVGG does (ICLR 2023, arXiv 2205.15242).

    Training the hyper-search form on a small dataset finds the scales with which ``mmrepmlp.RepOptimizerConstructor``
    trains the target form. The deploy form has no batch norms. Checkpoints of the authors' code load in all forms. The
    deploy form also loads those of the other two.

    Args:
        arch: B1, B2, L1, L2, or a dict with the lists ``depths`` and ``channels``, one entry for each stage.
        form: ``"target"`` or ``"hyper_search"``. Default: "target".
        in_channels: Number of image channels. Default: 3.
        strides: Strides of the stem and of the first block of each stage. Default: (2, 2, 2, 2, 2).
        out_indices: Stages whose feature maps are returned; negative numbers count from the end. Stages after the last
            of these are not built, since no gradient would reach them, and their tensors in a state dict and their
            scales are ignored. Default: (3, ).
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        frozen_stages: Stages to freeze: -1 for none, 0 for the stem, k for the stem and the first k stages.
            Default: -1.
        norm_eval: Whether batch norms stay in eval mode during training. Default: False.
        with_cp: Whether to recompute each block in the backward pass to save memory. Default: False.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of range; the message says what is expected.
    """

    origin = REPOPT_VGG

    def __init__(
        self,
        arch: str | dict,
        form: str = "target",
        in_channels: int = 3,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        out_indices: int | Sequence[int] = (3,),
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        depths, channels = resolve(arch)
        super().__init__(len(depths), out_indices, frozen_stages, norm_eval, deploy, init_cfg)
        if form not in FORMS:
            raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}.")
        check_per_stage(len(depths) + 1, strides=strides)  # the stem's first
        self.depths, self.channels = depths, channels
        self.form, self.norm_cfg, self.with_cp = form, norm_cfg, with_cp
        width = min(64, self.channels[0])
        self.stage0 = self.build_block(in_channels, width, strides[0], 0, deploy)
        for i, (channels, depth) in enumerate(zip(self.channels, self.depths[: self.num_built]), 1):
            inputs = [width, *[channels] * (depth - 1)]
            steps = [strides[i], *[1] * (depth - 1)]
            blocks = (self.build_block(n, channels, s, j, deploy) for j, (n, s) in enumerate(zip(inputs, steps)))
            self.add_module(f"stage{i}", Sequential(*blocks))
            width = channels
        self.freeze_stages()

    def build_block(self, in_channels: int, out_channels: int, stride: int, index: int, deploy: bool) -> nn.Module:
        """Build the block at an index of its stage."""
        if deploy or self.form == "target":
            return RepOptBlock(in_channels, out_channels, stride, self.norm_cfg, self.with_cp, deploy)
        # The deeper the block, the larger the share of its shortcut (section 3.3).
        scale = (2 / index) ** 0.5 if index else 1.0
        return LinearAddBlock(in_channels, out_channels, stride, scale, self.norm_cfg, self.with_cp)

    @property
    def stages(self) -> list[nn.Module]:
        """The stages that are built, without the stem."""
        return [self.get_submodule(f"stage{i + 1}") for i in range(self.num_built)]

    @property
    def blocks(self) -> dict[str, RepOptBlock | LinearAddBlock]:
        """All blocks, by name."""
        return self.parts()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps.

        Args:
            x: Images, shape (N, in_channels, H, W), with any H and W.

        Returns:
            The feature map of each stage in ``out_indices``; strides are 4, 8, 16 and 32 by default.
        """
        return self.run_stages(self.stage0(x))

    def load_scales(self, path: str) -> None:
        """Load the scales that a hyper-search found, and initialize the network with them if it is untrained.

        Args:
            path: Checkpoint of a hyper-search, or a file that only has its scales.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The scales belong to another network, or this network is not in target form.
        """
        if self.form != "target" or self.deploy:
            raise ValueError(
                f"scales={path}: this RepOptVGG is in {'deploy' if self.deploy else self.form} form. Scales are for "
                "form='target'."
            )
        blocks = self.blocks
        scales = read_scales(path, {name: block.scale_shapes() for name, block in blocks.items()}, self.unbuilt)
        untrained = not any(block.bn.num_batches_tracked for block in blocks.values())
        for name, block in blocks.items():
            block.set_scales(scales[name], initialize=untrained)


def resolve(arch: str | dict) -> tuple[list[int], list[int]]:
    """Return the depths and channels of the stages of an architecture, by its name or from a dict."""
    settings = ARCHITECTURES.get(arch.upper()) if isinstance(arch, str) else arch
    if not isinstance(settings, dict) or set(settings) != {"depths", "channels"}:
        raise ValueError(
            f"arch={arch!r}: expected one of {', '.join(ARCHITECTURES)}, or a dict with the lists depths and channels."
        )
    check_per_stage(len(settings["depths"]) or 1, **settings)
    return list(settings["depths"]), list(settings["channels"])
