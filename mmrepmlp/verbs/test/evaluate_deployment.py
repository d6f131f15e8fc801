# SPDX-License-Identifier: Apache-2.0
"""Evaluate a deployed network in the test loop of its framework."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmrepmlp.export.normalization import Normalization
from mmrepmlp.export.prediction import Task
from mmrepmlp.verbs.deploy.folder import WEIGHTS, Deployment, DeploymentError
from mmrepmlp.verbs.explain import explained
from mmrepmlp.verbs.model import drop_pretrained
from mmrepmlp.verbs.runner import build_runner

from .evaluate import load_test_config, run_test

Graph = Callable[[Tensor], tuple[Tensor, ...]]


def evaluate_deployment(
    config: str | Path,
    out_dir: str | Path,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    out: str | None = None,
    show_dir: str | Path | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Evaluate a deployed network on a config's test set, with the config's test pipeline and evaluator.

    If the graph ends in feature maps, the rest of the model runs in PyTorch.

    Args:
        config: Path of the config file, or ``package::path``.
        out_dir: Folder written by :func:`deploy_checkpoint` for a model of this config.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<config name>``.
        cfg_options, out, show_dir, progress: See :func:`evaluate`.

    Returns:
        The metrics, by name.

    Raises:
        FileNotFoundError: The folder does not hold a deployed network.
        ExplainedError: A dataset is missing.
        DeploymentError: A file of the folder was changed, or the network does not fit the config's model.
    """
    deployment = Deployment.read(out_dir)
    cfg, settings = load_test_config(config, cfg_options, work_dir, out=out, show_dir=show_dir), deployment.settings
    output = dict(settings["output"])
    task = Task(settings["task"], output.pop("name"), output)
    normalization = Normalization(**settings["normalization"])
    size = settings["input"]["height"], settings["input"]["width"]
    head = load_file(deployment.folder / WEIGHTS) if task.name == "features" else None
    with explained(cfg):
        return GraphEvaluator(cfg, normalization, task, size, head, progress)(deployment.load(), out)


class GraphEvaluator:
    """Evaluate graphs of one network on a config's test set, which is read once, with a model that is built once.

    Args:
        cfg: The config.
        normalization: Normalization inside the graphs. The config's data preprocessor applies it too, so it is undone.
        task: What the graphs predict.
        size: Height and width of the images that the graphs take, None for any. Smaller images are padded, except for
            classifiers. Default: (None, None).
        head: Weights of the rest of a model whose graph ends in feature maps; not used otherwise. Default: None.
        progress: See :func:`evaluate`. Default: True.
    """

    def __init__(
        self,
        cfg: Config,
        normalization: Normalization,
        task: Task,
        size: tuple[int | None, int | None] = (None, None),
        head: Mapping[str, Tensor] | None = None,
        progress: bool = True,
    ) -> None:
        cfg = copy.deepcopy(cfg)
        cfg.load_from, cfg.resume = None, False
        drop_pretrained(cfg.model)
        self.graph: Graph | None = None
        self.normalization, self.task, self.size = normalization, task, size
        self.runner = build_runner(cfg, progress)
        model = self.runner.model
        if task.name == "features":
            replace_part(model, task.settings["part"], self.run, head)
        elif task.name == "segmentation":
            replace_decoder(model, task, self.run)
        else:
            replace_classifier(model, task, self.run)

    def run(self, inputs: Tensor, *_: object, **__: object) -> tuple[Tensor, ...]:
        """Run the graph on images (N, C, H, W) that the config's data preprocessor has normalized."""
        height, width = inputs.shape[2:]
        if self.task.name != "classification":
            missing = [max(0, (wanted or side) - side) for wanted, side in zip(self.size, (height, width))]
            inputs = F.pad(inputs, (0, missing[1], 0, missing[0]))
        outputs = self.graph(self.normalization.undo(inputs))
        return tuple(o[..., :height, :width] for o in outputs) if self.task.name == "segmentation" else outputs

    def __call__(self, graph: Graph, out: str | None = None) -> dict[str, float]:
        """Evaluate a graph, which maps images (N, H, W, C) to outputs, and return the metrics."""
        self.graph = graph
        return run_test(self.runner, out)


def replace_classifier(model: nn.Module, task: Task, run: Graph) -> None:
    """Make a classifier use the scores of a graph."""
    if not hasattr(model, "head"):
        raise DeploymentError(f"The folder has a classifier, but the config's model is a {type(model).__name__}.")
    classes = getattr(model.head, "num_classes", None)
    inverse = {"softmax": torch.log, "sigmoid": torch.logit, "none": lambda scores: scores}

    def logits(images: Tensor) -> Tensor:
        (scores,) = run(images)
        if classes not in (None, scores.size(1)):
            raise DeploymentError(f"The graph returns {scores.size(1)} scores, but the config has {classes} classes.")
        smallest = torch.finfo(scores.dtype).tiny
        if task.settings["activation"] != "none":
            scores = scores.clamp(smallest, 1)
        return inverse[task.settings["activation"]](scores)

    model.extract_feat = lambda images, **_: images
    model.head.forward = logits


def replace_decoder(model: nn.Module, task: Task, run: Graph) -> None:
    """Make a segmentor use the classes or logits of a graph."""
    if not hasattr(model, "decode_head"):
        raise DeploymentError(f"The folder has a segmentor, but the config's model is a {type(model).__name__}.")
    channels = getattr(model.decode_head, "out_channels", None) or model.decode_head.num_classes
    if channels != task.settings["channels"]:
        raise DeploymentError(
            f"The graph has {task.settings['channels']} classes, but the config's head returns {channels} logits."
        )

    def decode(inputs: Tensor, metas: object) -> Tensor:
        (output,) = run(inputs)
        if task.output == "logits":
            return output
        if channels == 1:  # a logit that is certain of one class or the other
            return (output[:, None].float() - 0.5) * 100
        return F.one_hot(output.long(), channels).permute(0, 3, 1, 2).float()

    model.encode_decode = decode


def replace_part(model: nn.Module, part: str, run: Graph, head: Mapping[str, Tensor]) -> None:
    """Make a model use the feature maps of a graph instead of its backbone or neck, and load ``head`` into the rest."""
    owner, _, name = part.rpartition(".")
    try:
        parent = model.get_submodule(owner)
    except AttributeError:
        parent = None
    if not hasattr(parent, name):
        raise DeploymentError(f"The folder has a {part}, but the config's {type(model).__name__} does not.")
    for replaced in {"backbone", name}:
        setattr(parent, replaced, nn.Identity())
    parent.backbone.forward = run
    try:
        missing = model.load_state_dict(head, strict=False).missing_keys
    except RuntimeError as error:
        raise DeploymentError(f"The folder's weights do not fit the config's model: {error}") from error
    if missing:
        raise DeploymentError(f"The folder has no weights for {', '.join(missing[:3])} of the config's model.")
