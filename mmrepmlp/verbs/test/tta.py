# SPDX-License-Identifier: Apache-2.0
"""Set up test-time augmentation as the tools of the three frameworks do."""

import copy

from mmengine.config import Config, ConfigDict

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import as_list, framework_of

# Used if a config has no tta_model.
MODELS = {
    "mmpretrain": dict(type="AverageClsScoreTTA"),
    "mmseg": dict(type="SegTTAModel"),
    "mmdet": dict(type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)),
}
FLIP_KEYS = ("flip", "flip_direction")


def apply_tta(cfg: Config) -> None:
    """Wrap a config's model and test pipeline with its ``tta_model`` and ``tta_pipeline``, or with flips.

    Raises:
        MMRepMLPError: The config has no ``tta_model`` and its framework no default, or a dataset has no pipeline.
    """
    scope = framework_of(cfg)
    model = cfg.get("tta_model") or MODELS.get(scope)
    if model is None:
        raise MMRepMLPError(
            f"default_scope={scope!r} has no default model for test-time augmentation, unlike {', '.join(MODELS)}. Set "
            "tta_model and tta_pipeline in the config, or omit --tta."
        )
    prefix = "" if cfg.get("default_scope") else f"{scope}."
    if not cfg.get("tta_model"):
        model = {**model, "type": f"{prefix}{model['type']}"}
    preprocessor = cfg.model.get("data_preprocessor")
    if preprocessor and cfg.get("data_preprocessor"):  # BaseTTAModel overwrites the model's with the config's
        cfg.data_preprocessor = preprocessor
    cfg.model = ConfigDict({**model, "module": cfg.model})
    augment(cfg.test_dataloader.dataset, cfg.get("tta_pipeline"), f"{prefix}RandomFlip")


def augment(dataset: ConfigDict, pipeline: list[ConfigDict] | None, flip: str) -> None:
    """Replace the pipeline of a dataset, also inside wrappers, by ``pipeline``, or else add flips to it."""
    inner = [part for name in ("dataset", "datasets") for part in as_list(dataset.get(name))]
    if inner:
        for part in inner:
            augment(part, pipeline, flip)
    elif pipeline or dataset.get("pipeline"):
        dataset.pipeline = copy.deepcopy(pipeline) or flip_pipeline(dataset.pipeline, flip)
    else:
        raise MMRepMLPError(f"{dataset.type} has no pipeline to add flips to. Set tta_pipeline in the config.")


def flip_pipeline(pipeline: list[ConfigDict], flip: str) -> list[ConfigDict]:
    """Make a test pipeline return each image twice, as it is and flipped; annotations are not flipped."""
    pipeline = copy.deepcopy(pipeline)
    names = [str(step.type).rpartition(".")[2] for step in pipeline]
    starts = (i for i, name in enumerate(names) if name.startswith(("LoadAnnotations", "Pack")))
    first = next(starts, len(pipeline) - 1)
    last = pipeline[-1]
    if "meta_keys" in last:
        last.meta_keys = (*last.meta_keys, *(key for key in FLIP_KEYS if key not in last.meta_keys))
    flips = [dict(type=flip, prob=0.0), dict(type=flip, prob=1.0)]
    both = dict(type="TestTimeAug", transforms=[flips, *([step] for step in pipeline[first:])])
    return [*pipeline[:first], ConfigDict(both)]
