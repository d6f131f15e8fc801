# SPDX-License-Identifier: Apache-2.0
"""Draw predictions of one or several checkpoints of a model beside images and ground truth."""

import copy
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import nn

from mmrepmlp.checkpoint import atomic_write, load_from_local, unwrap
from mmrepmlp.verbs.config import read_config, require
from mmrepmlp.verbs.infer.drawing import draw_sample, enlarge, factor_of
from mmrepmlp.verbs.model import build_model, fitting_config, is_deploy_config

GAP = 4
COLUMNS = 8  # of a picture of classified images
RIGHT, WRONG = "#1a7f37", "#cf222e"


@torch.no_grad()
def draw_predictions(
    config: str | Path,
    checkpoints: str | Path | Sequence[str | Path],
    out: str | Path,
    images: int | None = None,
    score: float = 0.5,
) -> None:
    """Draw images evenly spread over the test set of a config.

    Of segmentors and detectors each row has an image, its ground truth and the prediction of each checkpoint. Of
    classifiers each image has these below it in words, wrong ones in red.

    Args:
        config: Config of a classifier, segmentor or detector.
        checkpoints: One or several of its checkpoints, in training form or deploy form.
        out: Picture to write, PNG.
        images: Number of images. Default: 6, or 40 of a classifier.
        score: Score threshold of detections. Default: 0.5.

    Raises:
        ValueError: The config has no test set or no visualizer, a checkpoint does not fit it, or the model predicts
            something else.
    """
    cfg = read_config(config)
    require(cfg, "test_dataloader", "visualizer")
    paths = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    models = [build_form(cfg, path) for path in paths]
    titles = name_models(paths, [title for title, _ in models])
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        number = images or (40 if cfg.get("default_scope") == "mmpretrain" else 6)
        indices = np.unique(np.linspace(0, len(dataset) - 1, number).astype(int)).tolist()
        samples = [[predict(model, dataset[index]) for _, model in models] for index in indices]
        with atomic_write(out) as temporary:
            if "pred_score" in samples[0][0]:
                figure = draw_classes(samples, titles, dataset.metainfo.get("classes"))
                figure.savefig(temporary, format="png", dpi=110)
                return
            visualizer = VISUALIZERS.build({**cfg.visualizer, "name": str(out), "vis_backends": None})
            visualizer.dataset_meta = dataset.metainfo
            rows = [draw_row(visualizer, predictions, score) for predictions in samples]
            picture = stack([draw_titles(["image", "truth", *titles], rows[0].shape[1]), *rows], 0)
            temporary.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def build_form(cfg: Config, checkpoint: str | Path) -> tuple[str, nn.Module]:
    """Build the model of a config in the form that a checkpoint has, with the name of the form."""
    state = unwrap(load_from_local(checkpoint))
    fitting = fitting_config(cfg, state)
    return "deploy form" if is_deploy_config(fitting) else "training form", build_model(fitting, state)


def name_models(paths: Sequence[str | Path], forms: Sequence[str]) -> list[str]:
    """Titles for the predictions of models: by their forms, if these differ, else by their files."""
    if len(paths) == 1:
        return ["prediction"]
    return list(forms) if len(set(forms)) == len(forms) else [Path(path).stem for path in paths]


def predict(model: nn.Module, data: dict) -> BaseDataElement:
    """The prediction for one sample of a data set."""
    (sample,) = model.test_step(pseudo_collate([copy.deepcopy(data)]))
    return sample.cpu()


def draw_row(visualizer: Visualizer, samples: Sequence[BaseDataElement], score: float) -> np.ndarray:
    """Image, ground truth and predictions of an image side by side, BGR.

    Raises:
        ValueError: The samples hold neither a map nor objects.
    """
    if not {"pred_sem_seg", "pred_panoptic_seg", "pred_instances"} & set(samples[0].keys()):
        raise ValueError(
            f"The model predicts {', '.join(samples[0].keys())}: expected a classifier, segmentor or detector."
        )
    image = mmcv.imread(samples[0].img_path, channel_order="rgb")
    panels = [enlarge(image, samples[0], factor_of(image))[0]]
    panels += [draw_sample(visualizer, image, samples[0], score, truth=True, labels=False)]
    panels += [draw_sample(visualizer, image, sample, score, labels=False) for sample in samples]
    return stack(panels, 1)[..., ::-1]


def draw_titles(titles: Sequence[str], width: int) -> np.ndarray:
    """A header with the columns' titles, as wide as a row."""
    strip = np.full((24, width, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        place = (column * width // len(titles) + 6, 17)
        cv2.putText(strip, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def stack(panels: list[np.ndarray], axis: int) -> np.ndarray:
    """Concatenate pictures with white gaps between them; shorter sides are padded with white."""
    other_axis = 1 - axis
    longest = max(panel.shape[other_axis] for panel in panels)
    padded = []
    for panel in panels:
        margin = [(0, 0)] * 3
        margin[other_axis] = (0, longest - panel.shape[other_axis])
        margin[axis] = (0, GAP)
        padded.append(np.pad(panel, margin, constant_values=255))
    return np.concatenate(padded, axis)


def draw_classes(
    samples: Sequence[Sequence[BaseDataElement]], titles: Sequence[str], classes: Sequence[str] | None
) -> Figure:
    """A grid of classified images, below each one its true class and the prediction of each model with its score."""
    rows, lines = -(-len(samples) // COLUMNS), 1 + len(titles)
    figure = Figure(figsize=(1.75 * COLUMNS, rows * (1.55 + 0.19 * lines)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # inches
    for axis in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, predictions in zip(figure.axes, samples):
        true = predictions[0].get("gt_label", torch.empty(0)).tolist()
        guesses = [int(sample.pred_score.argmax()) for sample in predictions]
        texts = [(f"truth: {', '.join(class_name(label, classes) for label in true) or 'unknown'}", "black")]
        for title, sample, guess in zip(titles, predictions, guesses):
            text = f"{title}: {class_name(guess, classes)}, {100 * sample.pred_score[guess]:.0f} %"
            texts.append((text, "black" if not true else RIGHT if guess in true else WRONG))
        axis.imshow(mmcv.imread(predictions[0].img_path, channel_order="rgb"))
        for line, (text, color) in enumerate(texts):
            place = dict(xy=(0.5, 0), xycoords="axes fraction", xytext=(0, -3 - 11 * line), textcoords="offset points")
            axis.annotate(text, **place, ha="center", va="top", fontsize=8, color=color)
        if true and any(guess not in true for guess in guesses):
            axis.set_frame_on(True)
            axis.spines[:].set(color=WRONG, linewidth=3)
    return figure


def class_name(label: int, classes: Sequence[str] | None, length: int = 16) -> str:
    """Name of a class, shortened to fit below an image; its number where it has none."""
    name = str(classes[label]) if classes and label < len(classes) else str(label)
    return name if len(name) <= length else name[: length - 1] + "…"
