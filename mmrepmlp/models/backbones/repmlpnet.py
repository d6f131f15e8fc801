# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.checkpoint import adapt_state_dict
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import Reparameterizable, scale_and_shift

from ..layers import ConvBN, PatchEmbed, RepMLPNetUnit, ScaleShift, build_batch_norm
from .arch import check_arguments, resolve_arch, resolve_indices, resolve_tiles, to_pair
from .staged import StagedBackbone


@MODELS.register_module()
class RepMLPNet(StagedBackbone, BaseModule, Reparameterizable):
    """RepMLPNet, a hierarchical vision MLP with re-parameterized locality (CVPR 2022, arXiv 2112.11081).

    Takes images of any size: ``img_size`` only sets the size of the tiles, ``img_size / stride`` in each stage, that
    the fully connected layers see. State dicts with mmpretrain's names or the authors' load alike; in deploy form so
    do training-form ones, folded on the way in. The fully connected layers of a state dict of another ``img_size`` are
    resampled.

    Args:
        arch: A letter (T, B, D, L), a long name (tiny, base, deep, large), both in any case, or a dict with the lists
            ``channels``, ``depths`` and ``sharesets_nums``, one entry for each stage.
        img_size: Height and width in pixels of the image that makes one tile. Default: 224.
        in_channels: Number of image channels. Default: 3.
        patch_size: Height and width in pixels of the patches of the stem. Default: 4.
        out_indices: Stages whose maps to return; negative ones count from the end. Stages behind the last of them are
            not built, since no gradient would reach them, and their tensors in a state dict are ignored.
            Default: (3, ).
        reparam_conv_kernels: Sides of the local branches' kernels in pixels, odd; None for no local perceptron.
            Default: (1, 3), as in all released models.
        globalperceptron_ratio: What the channels are divided by in the global perceptrons' bottlenecks. Default: 4.
        pad_mode: What fills the last tiles where a map is no whole number of tiles: ``"zeros"`` or ``"shift"`` (the
            last tile moves back inside the map; a map smaller than a tile is mirrored). Default: "shift".
        fc3_norm_init: Initial weight of the batch norms behind the fully connected layers; below 1, training starts out
            from the local perceptron, which suits small data sets. Default: 1.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        final_norm: Whether a batch norm follows the last stage. Default: True.
        drop_path_rate: Stochastic depth of the last unit; it grows linearly from 0 at the first. Default: 0.
        gradient_reparam: Whether to train in the structure of the deploy form, by ``mmrepmlp.RepOptimizerConstructor``;
            ``fc3_norm_init`` is then the constant scale of the fully connected layers beside the local branches'
            kernels, which they hold. Checkpoints are those of a network without local branches. Default: False.
        frozen_stages: Stages to freeze: -1 for none, 0 for the stem, k for the stem and the first k stages.
            Default: -1.
        norm_eval: Whether batch norms stay in eval mode during training. Default: False.
        with_cp: Whether to recompute each unit in the backward pass to save memory. Default: False.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of its range; the message says what is expected.
    """

    def __init__(
        self,
        arch: str | dict,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = 4,
        out_indices: int | Sequence[int] = (3,),
        reparam_conv_kernels: Sequence[int] | None = (1, 3),
        globalperceptron_ratio: int = 4,
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
        **unknown: object,
    ) -> None:
        check_arguments(type(self), unknown)
        super().__init__(init_cfg=init_cfg)
        self.arch_settings = resolve_arch(arch)
        self.channels, self.depths, self.sharesets_nums = self.arch_settings.values()
        self.img_size, self.patch_size = to_pair("img_size", img_size), to_pair("patch_size", patch_size)
        self.in_channels, self.out_indices = in_channels, resolve_indices(out_indices, len(self.depths))
        self.frozen_stages, self.norm_eval, self.with_cp = frozen_stages, norm_eval, with_cp
        self.check_frozen_stages(len(self.depths))
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={drop_path_rate}: expected a number from 0 up to, but not including, 1.")
        # What loading needs to rebuild the training form that a checkpoint comes from.
        self._training_form = dict(
            arch=self.arch_settings,
            img_size=self.img_size,
            in_channels=in_channels,
            patch_size=self.patch_size,
            out_indices=self.out_indices,
            reparam_conv_kernels=reparam_conv_kernels,
            globalperceptron_ratio=globalperceptron_ratio,
            pad_mode=pad_mode,
            norm_cfg=norm_cfg,
            final_norm=final_norm,
        )

        self.patch_embed = PatchEmbed(in_channels, self.channels[0], self.patch_size, norm_cfg, deploy)
        self.stages = ModuleList()
        self.downsample_layers = ModuleList()
        drop_rates = iter(torch.linspace(0, drop_path_rate, sum(self.depths), device="cpu").tolist())
        tiles = resolve_tiles(self.img_size, self.patch_size, len(self.depths))
        num_built = self.out_indices[-1] + 1
        for i, (channels, depth, (h, w)) in enumerate(zip(self.channels, self.depths[:num_built], tiles)):
            if i:
                self.downsample_layers.append(ConvBN(self.channels[i - 1], channels, 2, norm_cfg, True, deploy))
            units = [
                RepMLPNetUnit(
                    channels,
                    h=h,
                    w=w,
                    reparam_conv_kernels=reparam_conv_kernels,
                    globalperceptron_ratio=globalperceptron_ratio,
                    num_sharesets=self.sharesets_nums[i],
                    pad_mode=pad_mode,
                    fc3_norm_init=fc3_norm_init,
                    drop_path_rate=next(drop_rates),
                    norm_cfg=norm_cfg,
                    gradient_reparam=gradient_reparam,
                    with_cp=with_cp,
                    deploy=deploy,
                )
                for _ in range(depth)
            ]
            self.stages.append(Sequential(*units))
        if not final_norm or num_built < len(self.depths):
            self.final_norm = nn.Identity()
        elif deploy:
            self.final_norm = ScaleShift(self.channels[-1])
        else:
            self.final_norm = build_batch_norm(norm_cfg, self.channels[-1], fusible=True)
        self.freeze_stages()

    @property
    def deploy(self) -> bool:
        """Whether every part is in deploy form."""
        parts = [module for module in self.modules() if module is not self and isinstance(module, Reparameterizable)]
        return all(part.deploy for part in parts) and not isinstance(self.final_norm, _BatchNorm)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps.

        Args:
            x: Images, shape (N, in_channels, H, W), with any H and W.

        Returns:
            The map of each stage in ``out_indices``, before its downsampling: shape (N, channels[i], ceil(H / stride),
            ceil(W / stride)) with strides 4, 8, 16, 32 at the default patch size.
        """
        outs = []
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downsample_layers[i - 1](x)
            x = stage(x)
            if i in self.out_indices:
                outs.append(self.final_norm(x) if i == len(self.depths) - 1 else x)
        return tuple(outs)

    def get_equivalent_layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weight and bias of every layer of the deploy form, by name, as differentiable functions of this form's."""
        layers = {"patch_embed.projection": self.patch_embed.get_equivalent_conv()}
        for i, layer in enumerate(self.downsample_layers):
            layers[f"downsample_layers.{i}.conv"] = layer.get_equivalent_conv()
        for i, stage in enumerate(self.stages):
            for j, unit in enumerate(stage):
                named = unit.get_equivalent_layers().items()
                layers.update({f"stages.{i}.{j}.{name}": layer for name, layer in named})
        norm = self.final_norm
        if not isinstance(norm, nn.Identity):
            is_scale = isinstance(norm, ScaleShift)
            layers["final_norm"] = (norm.weight, norm.bias) if is_scale else scale_and_shift(norm)
        return layers

    def switch_to_deploy(self) -> None:
        """Convert to deploy form in place: a network without batch norms and local branches, same outputs."""
        for module in [self.patch_embed, *self.downsample_layers, *(unit for stage in self.stages for unit in stage)]:
            module.switch_to_deploy()
        if isinstance(self.final_norm, _BatchNorm):
            self.final_norm = ScaleShift.from_batch_norm(self.final_norm)
        self.freeze_stages()

    def locality_injection(self) -> None:
        """The authors' name for :meth:`switch_to_deploy`."""
        self.switch_to_deploy()

    def layers(self) -> list[list[nn.Module]]:
        """The stem, and each unit, the first of a stage with the downsampling in front of it."""
        layers = [[self.patch_embed]]
        for i, stage in enumerate(self.stages):
            layers += [[unit] for unit in stage]
            if i:
                layers[-len(stage)].append(self.downsample_layers[i - 1])
        return layers

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        adapt_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def build_training_form(self, **changes) -> "RepMLPNet":
        """Build the network that this one is, or would be, the deploy form of; its weights are not copied."""
        return RepMLPNet(**{**self._training_form, **changes})
