# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import torch
from mmengine.model import ModuleList, Sequential
from torch import Tensor, nn

from mmrepmlp.checkpoint.adapt import REPMLPNET
from mmrepmlp.checkpoint.tiles import note_tiles
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import Affine, affine

from ..backbone import StagedBackbone, check_per_stage, check_positive, to_pair
from ..common import ConvNorm, ScaleShift, build_batch_norm, refuse_fx
from .unit import RepMLPNetUnit

ARCHITECTURES = {
    ("t", "tiny"): dict(channels=[64, 128, 256, 512], depths=[2, 2, 6, 2], sharesets_nums=[1, 4, 16, 128]),
    ("b", "base"): dict(channels=[96, 192, 384, 768], depths=[2, 2, 12, 2], sharesets_nums=[1, 4, 32, 128]),
    ("d", "deep"): dict(channels=[80, 160, 320, 640], depths=[2, 2, 18, 2], sharesets_nums=[1, 4, 16, 128]),
    ("l", "large"): dict(channels=[96, 192, 384, 768], depths=[2, 2, 18, 2], sharesets_nums=[1, 4, 32, 256]),
}
KEYS = ("channels", "depths", "sharesets_nums")


@MODELS.register_module()
class RepMLPNet(StagedBackbone):
    """RepMLPNet, a hierarchical vision MLP with re-parameterized locality (CVPR 2022, arXiv 2112.11081).

    It takes images of any size: ``img_size`` only sets the size of the tiles that the fully connected layers see,
    ``img_size / stride`` in each stage. It loads state dicts with mmpretrain's names or the authors'. The deploy form
    also loads those in training form, and fuses them. Fully connected layers from another ``img_size`` are resampled.

    Args:
        arch: A letter (T, B, D, L), a long name (tiny, base, deep, large), both in any case, or a dict with the lists
            ``channels``, ``depths`` and ``sharesets_nums``, one entry for each stage.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        in_channels: Number of image channels. Default: 3.
        patch_size: Height and width in pixels of the patches of the stem. Default: 4.
        out_indices: Stages whose feature maps are returned; negative numbers count from the end. Stages after the last
            of these are not built, since no gradient would reach them, and their tensors in a state dict are ignored.
            Default: (3, ).
        reparam_conv_kernels: Kernel sizes of the local branches in pixels, odd; None for no local perceptron.
            Default: (1, 3), as in all released models.
        globalperceptron_ratio: Factor by which the bottlenecks of the global perceptrons reduce the channels.
            Default: 4.
        ffn_channels: Hidden width of the feed-forward network of each unit, a list for each stage that is built, as in
            the configs of compressed networks. Default: None, four times the channels.
        gp_channels: Width of the bottleneck of the global perceptron of each unit, likewise. Default: None, by
            ``globalperceptron_ratio``.
        pad_mode: How to complete the last tiles of a feature map that is not a whole number of tiles: ``"zeros"`` or
            ``"shift"`` (the last tile moves back inside the feature map; one smaller than a tile is mirrored).
            Default: "shift".
        fc3_norm_init: Initial weight of the batch norms after the fully connected layers; below 1, training starts
            mostly from the local perceptron, which suits small datasets. Default: 1.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        final_norm: Whether a batch norm follows the last stage. Default: True.
        drop_path_rate: Stochastic depth of the last unit; it grows linearly from 0 at the first. Default: 0.
        gradient_reparam: Whether to train in the structure of the deploy form, with
            ``mmrepmlp.RepOptimizerConstructor``. The weights of the fully connected layers then include the kernels of
            the local branches, and ``fc3_norm_init`` is the constant scale of the rest. Checkpoints are those of a
            network without local branches. Default: False.
        frozen_stages: Stages to freeze: -1 for none, 0 for the stem, k for the stem and the first k stages.
            Default: -1.
        norm_eval: Whether batch norms stay in eval mode during training. Default: False.
        with_cp: Whether to recompute each unit in the backward pass to save memory. Default: False.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of range; the message says what is expected.
    """

    origin = REPMLPNET

    def __init__(
        self,
        arch: str | dict,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = 4,
        out_indices: int | Sequence[int] = (3,),
        reparam_conv_kernels: Sequence[int] | None = (1, 3),
        globalperceptron_ratio: int = 4,
        ffn_channels: Sequence[Sequence[int]] | None = None,
        gp_channels: Sequence[Sequence[int]] | None = None,
        pad_mode: str = "shift",
        fc3_norm_init: float = 1.0,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        gradient_reparam: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        settings = resolve_arch(arch)
        stages = len(settings["depths"])
        super().__init__(stages, out_indices, frozen_stages, norm_eval, deploy, init_cfg)
        self.arch_settings = settings
        self.channels, self.depths, self.sharesets_nums = settings.values()
        self.img_size, self.patch_size = to_pair("img_size", img_size), to_pair("patch_size", patch_size)
        self.in_channels = in_channels
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={drop_path_rate}: expected a number from 0 up to, but not including, 1.")

        check_per_unit(self.depths[: self.num_built], ffn_channels=ffn_channels, gp_channels=gp_channels)
        # Convolutions whose windows do not overlap (paper section 3.5).
        patches = nn.Conv2d(in_channels, self.channels[0], self.patch_size, stride=self.patch_size, bias=deploy)
        joining = dict(norm_cfg=norm_cfg, relu=True, pad=True, deploy=deploy)
        self.patch_embed = ConvNorm(patches, names=("projection", "norm"), **joining)
        self.stages = ModuleList()
        self.downsample_layers = ModuleList()
        drop_rates = iter(torch.linspace(0, drop_path_rate, sum(self.depths), device="cpu").tolist())
        tiles = resolve_tiles(self.img_size, self.patch_size, stages)
        for i, (channels, depth, (h, w)) in enumerate(zip(self.channels, self.depths[: self.num_built], tiles)):
            if i:
                halving = nn.Conv2d(self.channels[i - 1], channels, 2, stride=2, bias=deploy)
                self.downsample_layers.append(ConvNorm(halving, **joining))
            units = [
                RepMLPNetUnit(
                    channels,
                    h=h,
                    w=w,
                    reparam_conv_kernels=reparam_conv_kernels,
                    globalperceptron_ratio=globalperceptron_ratio,
                    ffn_channels=ffn_channels and ffn_channels[i][j],
                    gp_channels=gp_channels and gp_channels[i][j],
                    num_sharesets=self.sharesets_nums[i],
                    pad_mode=pad_mode,
                    fc3_norm_init=fc3_norm_init,
                    drop_path_rate=next(drop_rates),
                    norm_cfg=norm_cfg,
                    gradient_reparam=gradient_reparam,
                    with_cp=with_cp,
                    deploy=deploy,
                )
                for j in range(depth)
            ]
            for unit in units:
                unit.repmlp_block.has_network = True
            self.stages.append(Sequential(*units))
        if not final_norm or self.num_built < stages:
            self.final_norm = nn.Identity()
        elif deploy:
            self.final_norm = ScaleShift(self.channels[-1])
        else:
            self.final_norm = build_batch_norm(norm_cfg, self.channels[-1])
        self.freeze_stages()

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Tile size (h, w) in pixels of each stage that is built."""
        return [(stage[0].repmlp_block.h, stage[0].repmlp_block.w) for stage in self.stages]

    @property
    def widths(self) -> dict[str, object]:
        """Arguments ``arch``, ``ffn_channels`` and ``gp_channels`` of a network with layers as wide as these are."""
        convs = [self.patch_embed.projection, *(layer.conv for layer in self.downsample_layers)]
        channels = [conv.out_channels for conv in convs] + self.channels[self.num_built :]
        return dict(
            arch={**self.arch_settings, "channels": channels},
            ffn_channels=[[unit.ffn_block.ffn_fc1.conv.out_channels for unit in stage] for stage in self.stages],
            gp_channels=[[unit.repmlp_block.gp.conv1.conv.out_channels for unit in stage] for stage in self.stages],
        )

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_tiles(destination, prefix, self.tiles)

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """Prefixes of the names of modules that are not built."""
        indices = range(self.num_built, self.num_stages)
        names = [name for i in indices for name in (f"stages.{i}.", f"downsample_layers.{i - 1}.")]
        return (*names, "final_norm.") if names else ()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps.

        Args:
            x: Images, shape (N, in_channels, H, W), with any H and W.

        Returns:
            The feature map of each stage in ``out_indices``, before its downsampling: shape (N, channels[i],
            ceil(H / stride), ceil(W / stride)) with strides 4, 8, 16, 32 at the default patch size.
        """
        refuse_fx(self, x)
        outs = []
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downsample_layers[i - 1](x)
            x = stage(x)
            if i in self.out_indices:
                outs.append(self.final_norm(x) if i == len(self.depths) - 1 else x)
        return tuple(outs)

    def equivalents(self) -> dict[str, Affine]:
        """Return the layers of all units, of the stem and the downsampling, and ``final_norm``."""
        norm = affine(self.final_norm)
        return super().equivalents() | ({} if norm is None else {"final_norm": norm})

    def deploy_layers(self) -> dict[str, nn.Module]:
        """Build ``final_norm``, a scale and a shift."""
        return {"final_norm": ScaleShift(self.widths["arch"]["channels"][-1])}

    def locality_injection(self) -> None:
        """Call :meth:`~mmrepmlp.reparam.Reparameterizable.switch_to_deploy`, by the authors' name."""
        self.switch_to_deploy()

    def layers(self) -> list[list[nn.Module]]:
        """Return the stem, and each unit, the first of a stage with the downsampling before it."""
        layers = [[self.patch_embed]]
        for i, stage in enumerate(self.stages):
            layers += [[unit] for unit in stage]
            if i:
                layers[-len(stage)].append(self.downsample_layers[i - 1])
        return layers


def resolve_arch(arch: str | dict) -> dict[str, list[int]]:
    """Look up an architecture by name, or check a dict of settings; returns its lists in the order of :data:`KEYS`."""
    if isinstance(arch, str):
        for names, settings in ARCHITECTURES.items():
            if arch.lower() in names:
                return {key: list(settings[key]) for key in KEYS}
        known = ", ".join(f"{short.upper()} ({long})" for short, long in ARCHITECTURES)
        raise ValueError(
            f"arch={arch!r} is unknown: expected one of {known}, or a dict with the keys {', '.join(KEYS)}."
        )
    if not isinstance(arch, dict) or set(arch) != set(KEYS):
        raise ValueError(f"arch={arch!r}: expected a name or a dict with exactly the keys {', '.join(KEYS)}.")
    depths = arch["depths"]
    check_per_stage(len(depths) if isinstance(depths, Sequence) and depths else 1, **{"depths": depths, **arch})
    settings = {key: list(arch[key]) for key in KEYS}
    for stage, (channels, _, sets) in enumerate(zip(*settings.values())):
        if channels % sets:
            raise ValueError(
                f"arch: the {channels} channels of stage {stage} are not divisible by sharesets_nums={sets}. Set "
                "sharesets_nums to a divisor of the channels."
            )
    return settings


def check_per_unit(depths: Sequence[int], **widths: Sequence[Sequence[int]] | None) -> None:
    """Check arguments that give a width for each unit.

    Raises:
        ValueError: An argument does not have a positive int for each unit of each stage.
    """
    for name, value in widths.items():
        if value is not None and [len(stage) for stage in value[: len(depths)]] != list(depths):
            raise ValueError(f"{name}={value}: expected lists of {list(depths)} numbers, one for each unit.")
        for width in (width for stage in value or () for width in stage):
            check_positive(**{name: width})


def resolve_tiles(img_size: tuple[int, int], patch_size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Return the tile size (h, w) in pixels of each stage: the feature map of an image of ``img_size`` is one tile."""
    strides = [[patch * 2**stage for patch in patch_size] for stage in range(stages)]
    return [tuple(-(-side // step) for side, step in zip(img_size, stride)) for stride in strides]
