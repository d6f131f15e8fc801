# SPDX-License-Identifier: Apache-2.0
"""Build models of configs with weights, run them on images, and derive the config of the deploy form."""

import copy
import inspect
from collections.abc import Iterator, Mapping

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmrepmlp.checkpoint import check_values, raise_faults

# Names of the arguments that build a deploy form; RepLKNet uses its own.
DEPLOY_ARGUMENTS = ("deploy", "small_kernel_merged")


def build_model(cfg: Config, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a config's model with the weights of a state dict, in eval mode.

    Raises:
        ValueError: The state dict does not fit the model.
    """
    settings = copy.deepcopy(cfg.model)
    drop_pretrained(settings)
    if "data_preprocessor" in cfg:  # as the runner does
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        model = MODELS.build(settings)
    check_values(model.state_dict(), state)
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's list of shape mismatches, one per line
        _, *lines = str(error).splitlines()
        raise_faults({"of another shape": [line.strip().rstrip(".") for line in lines]})
    raise_faults({"missing": result.missing_keys, "unexpected": result.unexpected_keys})
    return model.eval()


def iter_dicts(settings: object) -> Iterator[ConfigDict]:
    """Iterate over the nested dicts in a config, the outermost first."""
    if isinstance(settings, Mapping):
        yield settings
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        for part in settings:
            yield from iter_dicts(part)


def drop_pretrained(settings: ConfigDict) -> None:
    """Remove the settings that load pre-trained weights from a model's config."""
    for part in iter_dicts(settings):
        init = part.get("init_cfg")
        if isinstance(init, Mapping) and init.get("type") == "Pretrained":
            del part["init_cfg"]
        if isinstance(part.get("pretrained"), str):
            part["pretrained"] = None


def deploy_config(cfg: Config) -> Config:
    """A copy of a config whose model is built in deploy form and loads no pre-trained weights."""
    cfg = copy.deepcopy(cfg)
    drop_pretrained(cfg.model)
    with (
        DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")),
        MODELS.switch_scope_and_registry(None) as registry,
    ):
        for part in iter_dicts(cfg.model):
            kind = part.get("type")
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if hasattr(kind, "switch_to_deploy"):
                parameters = inspect.signature(kind).parameters
                part.update({name: True for name in DEPLOY_ARGUMENTS if name in parameters})
    return cfg


def random_images(model: nn.Module, number: int) -> Tensor:
    """Random images of the size that a model was built for, float64, the same in every call."""
    mean = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    side = getattr(model.backbone, "img_size", (224, 224))
    side = (side, side) if isinstance(side, int) else side
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3 if mean is None else len(mean), *side, generator=generator, dtype=torch.float64)


def run_model(model: nn.Module, images: Tensor) -> object:
    """All outputs of a model before post-processing, for a two-stage detector on fixed boxes.

    Its own proposals are sorted and suppressed, so that a rounding error could swap two of them.
    """
    if not hasattr(model, "roi_head"):
        return model(images, mode="tensor")
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    height, width = images.shape[-2:]
    corners = [(0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.5, 0.9), (0.4, 0.3, 0.6, 0.5), (0.7, 0.0, 1.0, 0.2)]
    boxes = images.new_tensor(corners) * images.new_tensor([width, height, width, height])
    features = model.extract_feat(images)
    proposals = [InstanceData(bboxes=boxes) for _ in images]
    samples = [DetDataSample(metainfo=dict(img_shape=(height, width), flip=False)) for _ in images]
    return {
        "features": features,
        "rpn": model.rpn_head(features) if model.with_rpn else (),
        "roi": model.roi_head.forward(features, proposals, samples),
    }


@torch.no_grad()
def count_macs(model: nn.Module) -> int:
    """Multiply-accumulate operations of convolutions and matrix products on one image."""
    with FlopCounterMode(display=False) as counter:
        run_model(model, random_images(model, 1).float())
    return counter.get_total_flops() // 2
