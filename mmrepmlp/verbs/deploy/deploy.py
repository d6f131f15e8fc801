# SPDX-License-Identifier: Apache-2.0
"""Deploy a checkpoint as a folder that runs without any framework."""

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
from .proof import FLOAT_TOLERANCE, Proof, check_drop, prove_close

RANDOM_IMAGES = 8  # to compare predictions on, where there are no others
MAX_DROP = 0.5  # points


@dataclass
class DeploymentReport:
    """What was deployed.

    Attributes:
        deployment: The folder.
        proof: How far the graph is from the PyTorch model.
        metrics: With ``verify_on="test"``, metrics of the PyTorch model and of the graph.
        remarks: What to know about it.
    """

    deployment: Deployment
    proof: Proof
    metrics: dict[str, dict[str, float]] | None
    remarks: list[str]

    def table(self) -> Table:
        """To print."""
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
    """Deploy a checkpoint as a folder with a graph, what it takes and gives, and a program that runs it.

    The graph takes images as OpenCV reads them, uint8 or uint16 as those of the test set (else the training set) are,
    after the resizing of the config's test pipeline, and has the normalization inside. A classifier ends in scores, a
    segmentor in classes of pixels, any other model in the feature maps of its neck or backbone; the rest of its weights
    are put beside the graph, for :func:`evaluate_deployment`.

    The folder is written atomically, and only if the graph agrees with the PyTorch model: in float32 by 1e-4 on fresh
    random images, in bfloat16 and int8 by its predictions on images of the test set (else the training set, else random
    ones), and what is quantized here by the metric where the test set has labels.

    Args:
        config: Path of the config file, or ``package::path``.
        checkpoint: Checkpoint of the model, in training form or in deploy form.
        out_dir: The folder to write; with ``raw`` the ONNX file.
        runtime: ``openvino`` or ``onnxruntime``. Default: ``openvino``.
        precision: ``float32``, ``int8``, or with OpenVINO ``bfloat16``. A network that was trained with fake
            quantization keeps its ranges in int8; any other is quantized with images of the training set.
            Default: ``float32``.
        size: Height and width of the images in pixels; smaller ones are padded, but for classifiers. Default: what the
            test pipeline makes of any image; any size where that depends on the image.
        dynamic: Symbolic axes of the graph, of ``batch``, ``height`` and ``width``. Default: ``batch``, and the others
            where no size is known.
        batch: Number of images, where it is not dynamic. Default: 1.
        part: Deploy the feature maps of this backbone or neck instead of the whole model. Default: None.
        logits: Whether a segmentor ends in logits instead of classes. Default: False.
        images: Number of training images to calibrate int8 with. Default: 300.
        max_drop: How far the metric on the test set may drop, in points; in int8 layers are left in float until it
            does. Implies ``verify_on="test"``. Default: None, 0.5 where the metric is measured.
        verify_on: ``"test"`` to measure the metric before and after. Default: None.
        ema: Whether to use the weights averaged over the training. Default: False.
        raw: Whether to write the plain network as one ONNX file instead: it takes images that the data preprocessor has
            normalized, and ends in the model's raw outputs. Default: False.
        opset: With ``raw``, version of ONNX's operators, from 13 to the newest that the installed onnx knows.
            Default: 20.
        work_dir: Folder for logs. Default: the config's, or ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, by dotted names. Default: None.
        overwrite: Whether an existing folder may be replaced. Default: False.
        allow_unsafe: Whether to run code that the checkpoint holds. Default: False.

    Returns:
        What was deployed.

    Raises:
        FileExistsError: ``out_dir`` exists and ``overwrite`` is not set.
        FileNotFoundError: The config, the checkpoint, or a dataset that is needed does not exist.
        ValueError: An argument is out of its range or has no effect, or the checkpoint does not fit the config.
        ExportError, DeploymentError: The graph cannot be made, or does not agree with the model.
        MMRepMLPError: Filters that training left are still to be removed.
        ImportError: The runtime is not installed.
    """
    given = dict(locals())
    usual = dict(runtime="openvino", precision="float32", logits=False, images=300)
    usual |= dict(max_drop=None, verify_on=None, work_dir=None)
    idle = [name for name, value in (usual if raw else dict(opset=None)).items() if given[name] != value]
    if idle:
        raise ValueError(f"{', '.join(idle)}: without effect {'with' if raw else 'without'} raw=True. Leave it out.")
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
            "The network was trained with fake quantization, and its graph is int8: pass precision='int8' "
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
    if size and tested != size and task.name != "classification":  # as a batch of images of several sizes is padded
        steps.append(padding(network.normalization, size=size))
    if dynamic is None:
        dynamic = ("batch",) if known else DYNAMIC_AXES
    shape = (max(batch, 2) if "batch" in dynamic else batch, *(known or image_size(model)))
    sides = [None if name in dynamic else side for name, side in zip(DYNAMIC_AXES, shape)]
    network.check(shape[1:])
    # What rounds is judged by the metric where there is one; only where that was asked for, there has to be one.
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
            proof = Proof(verify_graph(network, graph, shape, dynamic, FLOAT_TOLERANCE))
        else:
            compared = [fit(image, sides[1:]) for image in samples]
            compared = compared or [network.make_images(*shape) for _ in range(RANDOM_IMAGES)]
            proof = prove_close(network, graph, compared, origin, precision)
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
    unseen = [] if samples else ["no image of the test or training set can be read: the graph takes uint8, as most are"]
    return DeploymentReport(deployment, proof, metrics, unseen + remarks_on(deployment.settings))


def head_weights(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """The weights of what follows the graph, by name."""
    owner, _, name = task.settings["part"].rpartition(".")
    inside = tuple(f"{owner}.{part}.".lstrip(".") for part in {"backbone", name})
    # Copies, since heads share layers, and safetensors stores no memory twice.
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith(inside)}


def remarks_on(settings: dict) -> list[str]:
    """What to know about a deployed network."""
    remarks = []
    if settings["task"] == "features":
        part = settings["output"]["part"]
        remarks.append(f"the graph ends in the feature maps of {part}; what follows runs in PyTorch, with {WEIGHTS}")
    if settings["runtime"] == "openvino":
        from mmrepmlp.export.openvino import is_fast_here

        if not is_fast_here(settings["precision"]):
            how = "compared and computed in float32" if settings["precision"] == "bfloat16" else "not faster"
            remarks.append(f"this processor has no instructions for {settings['precision']}: {how} here")
    if settings["input"]["height"] is None:
        remarks.append("any size; with --size HEIGHT WIDTH, a graph of one size is faster")
    if settings["precision"] == "int8" and not settings["metrics"]:
        remarks.append("judged by its predictions alone, not by a metric: --verify-on test measures it")
    unknown = [step["type"] for step in settings["preprocessing"] if len(step) == 1]
    if unknown:
        remarks.append(f"run.py does not know {', '.join(unknown)} of the test pipeline; mmrepmlp test does")
    return remarks
