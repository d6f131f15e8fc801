# SPDX-License-Identifier: Apache-2.0
"""Deploy a checkpoint to a folder that runs without any framework."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from math import nan
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from mmrepmlp.checkpoint import atomic_folder, check_overwrite, meta_of
from mmrepmlp.export import OnnxReport, export_onnx
from mmrepmlp.export.graph import DYNAMIC_AXES, OPSET, check_axes, verify_graph
from mmrepmlp.export.prediction import PredictionNetwork, Task, task_of
from mmrepmlp.models import image_size
from mmrepmlp.models.backbone import check_positive
from mmrepmlp.quantization.aware import is_quantized
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.config import class_metainfo, load_config, read_config
from mmrepmlp.verbs.model import build_model
from mmrepmlp.verbs.reparameterize.compressed import read_finished
from mmrepmlp.verbs.test.evaluate import evaluate_weights
from mmrepmlp.verbs.test.evaluate_deployment import GraphEvaluator
from mmrepmlp.verbs.test.metrics import check_scored, main_metric, numbers, scale_of
from mmrepmlp.version import __version__

from .folder import FORMAT, GRAPHS, WEIGHTS, Deployment, DeploymentError, check_runtime, sha256, write_program
from .graph import make_graph
from .images import dataset_images, fit, sample_images
from .pipeline import describe_padding, describe_pipeline, graph_size, padding
from .verification import FLOAT_TOLERANCE, GraphComparison, check_drop, compare_rounded

RANDOM_IMAGES = 8  # to compare predictions on if there are no other images
MAX_DROP = 0.5  # of a metric, in percentage points


@dataclass
class DeploymentReport:
    """Report on a deployed network.

    Attributes:
        deployment: The folder.
        proof: Comparison of the graph with the PyTorch model.
        metrics: Metrics ``"before"``, of the PyTorch model, and ``"after"``, of the graph; None if not measured.
        remarks: Notes on limitations.
    """

    deployment: Deployment
    proof: GraphComparison
    metrics: dict[str, dict[str, float]] | None
    remarks: list[str]

    def table(self) -> Table:
        """Return the report as a table to print."""
        settings = self.deployment.settings
        table = Table(title=f"{self.deployment.folder}", title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_row("graph", f"{settings['runtime']}, {settings['precision']}")
        table.add_row("task", f"{settings['task']}: {settings['output']['name']}")
        sides = ("any" if settings["input"][name] is None else str(settings["input"][name]) for name in DYNAMIC_AXES)
        table.add_row("images", "{} x {} x {}, {}".format(*sides, settings["input"]["type"]))
        table.add_row("size", f"{self.deployment.megabytes:.2f} MB")
        for name, value in self.proof.rows().items():
            table.add_row(name, value)
        for name, before in (self.metrics or {"before": {}})["before"].items():
            table.add_row(name, f"{before:.4g} before, {self.metrics['after'][name]:.4g} deployed")
        for remark in self.remarks:
            table.add_row("note", remark)
        return table


def deploy_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out_dir: str | Path,
    runtime: str = "openvino",
    precision: str = "float32",
    size: tuple[int, int] | None = None,
    dynamic: Sequence[str] | None = None,
    batch: int = 1,
    part: str | None = None,
    logits: bool = False,
    images: int = 300,
    max_drop: float | None = None,
    verify_on: str | None = None,
    ema: bool = False,
    raw: bool = False,
    opset: int | None = None,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    overwrite: bool = False,
    allow_unsafe: bool = False,
) -> DeploymentReport | OnnxReport:
    """Deploy a checkpoint to a folder with a graph, a description of its inputs and outputs, and a program to run it.

    The graph takes images as OpenCV reads them, after resizing as in the config's test pipeline; normalization is part
    of the graph. Images are uint8 or uint16, like those of the test set, or else of the training set. Classifiers
    return scores, segmentors the class of each pixel. For other models, such as detectors, only backbone and neck are
    exported, and the remaining weights are stored beside the graph for :func:`evaluate_deployment`.

    The folder is written atomically, and only if the graph agrees with the PyTorch model: float32 within 1e-4 on random
    images; bfloat16 and int8 by their predictions on images of the test set, or else of the training set, or else
    random ones; and networks that are quantized here also by their metric if the test set has labels.

    Args:
        config: Path of the config file, or ``package::path``.
        checkpoint: Checkpoint of the model, in training form or deploy form.
        out_dir: Folder to write; with ``raw``, the ONNX file.
        runtime: ``openvino`` or ``onnxruntime``. Default: ``openvino``.
        precision: ``float32``, ``int8``, or with OpenVINO ``bfloat16``. Networks trained with fake quantization keep
            their ranges in int8; others are quantized with images of the training set. Default: ``float32``.
        size: Height and width of the images in pixels; smaller images are padded, except for classifiers. Default: what
            the test pipeline resizes or crops to; any size if that depends on the image.
        dynamic: Dynamic axes of the graph, among ``batch``, ``height`` and ``width``. Default: ``batch``, and the
            others if no size is known.
        batch: Batch size, unless the batch axis is dynamic. Default: 1.
        part: Backbone or neck to export up to, instead of the whole model; the graph returns its feature maps.
            Default: None.
        logits: Whether a segmentor returns logits instead of classes. Default: False.
        images: Number of training images to calibrate int8 with. Default: 300.
        max_drop: Largest allowed drop of the metric on the test set, in percentage points; int8 leaves layers in float
            to stay within it. Implies ``verify_on="test"``. Default: None, 0.5 if the metric is measured.
        verify_on: ``"test"`` to measure the metric before and after. Default: None.
        ema: Whether to use the weights averaged during training (EMA). Default: False.
        raw: Whether to write only an ONNX file of the network instead, which takes images normalized by the data
            preprocessor and returns the model's raw outputs. Default: False.
        opset: ONNX opset, with ``raw``, from 13 to the newest of the installed onnx. Default: 20.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<config name>``.
        cfg_options: Config settings to override, by dotted name. Default: None.
        overwrite: Whether to replace an existing folder. Default: False.
        allow_unsafe: Whether to run code that the checkpoint holds. Default: False.

    Returns:
        Report on the deployed network.

    Raises:
        FileExistsError: ``out_dir`` exists and ``overwrite`` is not set.
        FileNotFoundError: The config or the checkpoint does not exist.
        CheckpointError: The checkpoint cannot be read, or holds code.
        ExplainedError: A dataset that is needed is missing.
        ValueError: An argument is out of range or has no effect, or the checkpoint does not fit the config.
        ExportError, DeploymentError: The graph cannot be exported, or does not agree with the model.
        MMRepMLPError: The checkpoint comes from compression training and was not converted, or the test set yields no
            metric, if one is required.
        ImportError: The runtime is not installed.
    """
    arguments = dict(locals())
    defaults = dict(runtime="openvino", precision="float32", logits=False, images=300)
    defaults |= dict(max_drop=None, verify_on=None, work_dir=None)
    unused = [name for name, value in (defaults if raw else dict(opset=None)).items() if arguments[name] != value]
    if unused:
        raise ValueError(f"{', '.join(unused)}: without effect {'with' if raw else 'without'} raw=True. Leave it out.")
    check_axes(dynamic or ())
    check_positive(batch=batch, images=images, height=size[0] if size else 1, width=size[1] if size else 1)
    out_dir = Path(out_dir)
    check_overwrite(out_dir, overwrite=overwrite)
    if raw:
        _, state = read_finished(config, checkpoint, ema, allow_unsafe)
        model = build_model(read_config(config, cfg_options), state)
        axes, opset = ("batch",) if dynamic is None else dynamic, OPSET if opset is None else opset
        return export_onnx(model, out_dir, size or image_size(model), batch, axes, opset, part, overwrite=overwrite)
    check_runtime(runtime, precision)
    if verify_on not in (None, "test"):
        raise ValueError(f"verify_on={verify_on!r}: expected None or 'test'.")
    cfg = load_config(config, cfg_options, work_dir)
    content, state = read_finished(config, checkpoint, ema, allow_unsafe)
    asked = verify_on is not None or max_drop is not None
    if asked:
        check_scored(cfg)
    classes = class_metainfo(cfg, meta_of(content))
    model = build_model(cfg, state)
    if is_quantized(model) and precision != "int8":
        raise DeploymentError(
            "The network was trained with fake quantization, so its graph is int8: pass precision='int8' "
            "(--precision int8). Nothing was written."
        )
    quantizes = precision == "int8" and not is_quantized(model)
    samples, origin = sample_images(cfg)
    image = samples[0] if samples else None
    task = task_of(model, part, logits, None if image is None else image.size(-1))
    network = PredictionNetwork(switch_to_deploy(model), task, image).eval()
    color, steps = describe_pipeline(cfg)
    steps += describe_padding(model.data_preprocessor, network.normalization)
    tested = graph_size(model, steps)
    known = size or tested
    if size and tested != size and task.name != "classification":  # as data preprocessors pad a batch
        steps.append(padding(network.normalization, size=size))
    if dynamic is None:
        dynamic = ("batch",) if known else DYNAMIC_AXES
    shape = (max(batch, 2) if "batch" in dynamic else batch, *(known or image_size(model)))
    sides = [None if name in dynamic else side for name, side in zip(DYNAMIC_AXES, shape)]
    network.check(shape[1:])
    # Quantization is judged by the metric if there is one; the metric is required only if it was asked for.
    optional = suppress(() if asked else Exception)
    before = None
    if asked or quantizes:
        with optional:
            before = evaluate_weights(config, state, work_dir, cfg_options)
            judge = main_metric(before)

    @cache
    def evaluator() -> GraphEvaluator:
        return GraphEvaluator(cfg, network.normalization, task, sides[1:], model.state_dict())

    def scale() -> tuple[float, float]:
        return scale_of(judge, before[judge], evaluator().runner.test_evaluator.metrics)

    with atomic_folder(out_dir) as folder:
        deployment = Deployment(folder, dict(graph=GRAPHS[runtime], runtime=runtime, precision=precision))
        make_graph(
            network,
            folder / GRAPHS[runtime],
            precision,
            shape,
            dynamic,
            [fit(image, sides[1:]) for image in dataset_images(cfg, "train", images)] if quantizes else None,
            measure=None if max_drop is None else lambda graph: scale()[0] * evaluator()(graph)[judge],
            max_drop=max_drop,
        )
        graph, metrics, unit = deployment.load(), None, None
        if precision == "float32":
            proof = GraphComparison(verify_graph(network, graph, shape, dynamic, FLOAT_TOLERANCE))
        else:
            compared = [fit(image, sides[1:]) for image in samples]
            compared = compared or [network.make_images(*shape) for _ in range(RANDOM_IMAGES)]
            proof = compare_rounded(network, graph, compared, origin, precision)
        if before:
            with optional:
                metrics = dict(before=before, after=numbers(evaluator()(graph)))
        if metrics:
            after, unit = metrics["after"].get(judge, nan), scale()[0]
            allowed = MAX_DROP if max_drop is None else max_drop
            check_drop(before[judge], after, judge, scale(), allowed, exact=precision == "float32")
        if task.name == "features":
            save_file(head_weights(model, task), folder / WEIGHTS)
        write_program(folder, runtime, steps)
        deployment.settings |= dict(
            format=FORMAT,
            task=task.name,
            output=dict(name=task.output, **task.settings),
            input=dict(
                **dict(zip(DYNAMIC_AXES, sides)),
                channels=network.channels,
                layout="NHWC",
                type=str(network.normalization.dtype).removeprefix("torch."),
                order={3: "BGR", 4: "BGRA"}.get(network.channels),
                color_type=color,
            ),
            normalization=asdict(network.normalization),
            preprocessing=steps,
            classes=classes.get("classes"),
            palette=classes.get("palette"),
            config=Path(config).name,
            checkpoint=dict(name=Path(checkpoint).name, sha256=sha256(checkpoint)),
            proof=proof.as_json(),
            metrics=metrics,
            unit=unit,
            versions={
                "mmrepmlp": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in [runtime, *(["nncf"] if precision == "int8" else [])]},
            },
            files={file.name: sha256(file) for file in sorted(folder.iterdir())},
        )
        deployment.write()
    deployment = Deployment.read(out_dir)
    unseen = [] if samples else ["no image of the test or training set can be read; the graph takes uint8 images"]
    return DeploymentReport(deployment, proof, metrics, unseen + remarks_on(deployment.settings))


def head_weights(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """Return the weights of the rest of a model whose graph ends in feature maps, by name."""
    owner, _, name = task.settings["part"].rpartition(".")
    inside = tuple(f"{owner}.{part}.".lstrip(".") for part in {"backbone", name})
    # Copies, since heads may share layers, and safetensors rejects shared memory.
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith(inside)}


def remarks_on(settings: dict) -> list[str]:
    """Return notes on the limitations of a deployed network."""
    remarks = []
    if settings["task"] == "features":
        part = settings["output"]["part"]
        remarks.append(f"the graph returns the feature maps of {part}; the rest runs in PyTorch, with {WEIGHTS}")
    if settings["runtime"] == "openvino":
        from mmrepmlp.export.openvino import is_fast_here

        if not is_fast_here(settings["precision"]):
            effect = "compared and run in float32" if settings["precision"] == "bfloat16" else "not faster"
            remarks.append(f"this processor has no instructions for {settings['precision']}: {effect} here")
    if settings["input"]["height"] is None:
        remarks.append("the graph takes any size; with --size HEIGHT WIDTH, a graph for one size is faster")
    if settings["precision"] == "int8" and not settings["metrics"]:
        remarks.append("int8 was checked by predictions only, not by a metric; --verify-on test measures it")
    unknown = [step["type"] for step in settings["preprocessing"] if len(step) == 1]
    if unknown:
        remarks.append(f"run.py does not know {', '.join(unknown)} of the test pipeline; mmrepmlp test does")
    return remarks
