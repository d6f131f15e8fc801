# SPDX-License-Identifier: Apache-2.0
"""Deployed networks against the frameworks on real digits and scenes, and what is refused."""

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import venv
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from safetensors.torch import load_file

from mmrepmlp.apis import benchmark, deploy_checkpoint, evaluate, evaluate_deployment, infer
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.export import OnnxNetwork
from mmrepmlp.export.normalization import Normalization, preprocessing_of
from mmrepmlp.models import image_size
from mmrepmlp.reparam import named_tensors
from mmrepmlp.verbs.deploy import deploy as module
from mmrepmlp.verbs.deploy.folder import Deployment, DeploymentError
from mmrepmlp.verbs.deploy.images import dataset_images
from mmrepmlp.verbs.explain import ExplainedError
from mmrepmlp.verbs.model import build_model, build_untrained
from mmrepmlp.verbs.test.evaluate_deployment import replace_part
from tests.helpers import render

pytestmark = pytest.mark.slow
# ONNX Runtime in float32: test_deploy_data.py.
FORMS = [("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"), ("onnxruntime", "int8")]


def program_of(folder: Path) -> object:
    """The network of a deployed folder, as its own program loads it."""
    return runpy.run_path(str(folder / "run.py"))["Network"](folder, threads=1)


@pytest.fixture(scope="module")
def few(learned, digits, tmp_path_factory) -> dict:
    """Settings of a test set of 200 images, each of which is half a point of accuracy."""
    root = tmp_path_factory.mktemp("few")
    for folder in (digits / "val").iterdir():
        (root / "val" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:20]:
            shutil.copy(image, root / "val" / folder.name)
    return {**learned.options, "test_dataloader.dataset.data_root": str(root)}


@pytest.fixture(scope="module")
def predictions(learned, config, few, tmp_path_factory):
    """What the framework's inferencer predicts for each test image."""
    images, out = Path(few["test_dataloader.dataset.data_root"], "val"), tmp_path_factory.mktemp("predictions")
    result = infer(config, learned.checkpoint, images, out, cfg_options=few, device="cpu")
    return {images / entry["image"]: entry for entry in result.read()}


@pytest.fixture(scope="module")
def deploy_form(learned, config, few, tmp_path_factory) -> Callable[[str, str], Deployment]:
    """The network in a runtime and a precision, deployed once; in the first form for any number of images."""
    root = tmp_path_factory.mktemp("deployed")

    @cache
    def deploy(runtime: str, precision: str) -> Deployment:
        form = dict(runtime=runtime, precision=precision, dynamic=None if (runtime, precision) == FORMS[0] else ())
        options = dict(form, images=32, cfg_options=few, verify_on="test", work_dir=str(root / "log"))
        report = deploy_checkpoint(config, learned.checkpoint, root / f"{runtime}_{precision}", **options)
        assert "accuracy/top1" in render(report.table())
        return report.deployment

    return deploy


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def deployed(request, deploy_form) -> Deployment:
    return deploy_form(*request.param)


def test_the_program_predicts_what_the_framework_does(config, deployed, few, predictions, tmp_path):
    folder, exact = deployed.folder, deployed.settings["precision"] == "float32"
    files = {"deploy.json", "requirements.txt", "run.py"}
    graph = {"model.xml", "model.bin"} if deployed.settings["runtime"] == "openvino" else {"model.onnx"}
    assert {path.name for path in folder.iterdir()} == files | graph
    network = program_of(folder)
    accuracy = right = 0
    for path, expected in predictions.items():
        (scores,) = network.predict(network.read(path))
        right += network.name_of(int(scores.argmax())) == path.parent.name
        accuracy += expected["pred_class"] == path.parent.name
        if exact:
            assert scores.argmax() == expected["pred_label"]
            np.testing.assert_allclose(scores, expected["pred_scores"], atol=1e-4)
    accuracy *= 100 / len(predictions)
    metrics = evaluate_deployment(config, folder, str(tmp_path), few)
    assert metrics["accuracy/top1"] == pytest.approx(100 * right / len(predictions), abs=1e-4)
    assert deployed.settings["metrics"] == dict(before={"accuracy/top1": pytest.approx(accuracy)}, after=metrics)
    assert accuracy - metrics["accuracy/top1"] <= (0 if exact else 0.5)


def test_exactness_and_size_are_reported(deployed, learned):
    settings, proof = deployed.settings, deployed.settings["proof"]
    if settings["runtime"] == "openvino":
        numbers = sum(value.numel() for value in load_from_local(learned.checkpoint)["state_dict"].values())
        bytes_of = {"float32": 4, "bfloat16": 2, "int8": 1}
        weights = (deployed.folder / "model.bin").stat().st_size
        assert weights / numbers == pytest.approx(bytes_of[settings["precision"]], rel=0.3)
    if settings["precision"] == "float32":
        assert all(entry["error"] < 1e-4 for entry in proof["errors"])
        batches = {1, 3} if settings["input"]["batch"] is None else {1}
        assert {entry["shape"][0] for entry in proof["errors"]} == batches
    else:
        assert proof["agreement"] >= 0.9 and proof["images"] == "64 images of the test set"
    assert settings["classes"] == list("0123456789")
    assert settings["normalization"]["channels"] == [2, 1, 0]


def test_deployments_side_by_side(config, deploy_form, learned, tmp_path):
    deployments = [deploy_form(*form) for form in FORMS]
    shutil.copytree(deployments[0].folder, tmp_path / "copy")
    few = {**learned.options, "test_dataloader.dataset.indices": 16}
    folders = [deployment.folder for deployment in deployments]
    report = benchmark([config, *folders, tmp_path / "copy"], repeats=1, work_dir=str(tmp_path), cfg_options=few)
    *rows, copy = report.rows
    assert copy["model"] == "copy" and copy["accuracy/top1"] == rows[0]["accuracy/top1"]
    for row, deployment in zip(rows, deployments, strict=True):
        assert row["model"] == deployment.folder.name and row["accuracy/top1"] > 50 and row["milliseconds"] > 0
        assert row["megabytes"] == deployment.megabytes > 0.1
        assert f"{deployment.settings['runtime']} {deployment.settings['precision']}" in render(report.table())
    # Without the config, what was measured when they were deployed.
    for row in benchmark(folders, repeats=1).rows:
        assert row["drop"] == pytest.approx(row["before"] - row["after"]) and row["milliseconds"] > 0


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A Python that has numpy, OpenCV and both runtimes, and no torch."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in ("numpy", "opencv-python", "openvino", "onnxruntime", "flatbuffers", "protobuf", "packaging"):
        found = {file.parts[0] for file in importlib.metadata.files(name) or () if file.parts[0] not in ("..", "bin")}
        for part in found:
            source = Path(importlib.metadata.distribution(name).locate_file(part))
            if source.exists() and not (packages / part).exists():
                (packages / part).symlink_to(source)
    return folder / "bin/python"


@pytest.mark.parametrize("deployed", [FORMS[2], FORMS[3]], ids="-".join, indirect=True)
def test_the_program_needs_no_framework(deployed, bare_python, digits, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for label in "37":
        shutil.copy(next((digits / "val" / label).iterdir()), images / f"{label}.png")
    (images / "broken.png").write_bytes(b"no image")

    def run(*arguments):
        command = [bare_python, "-I", deployed.folder / "run.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert subprocess.run([bare_python, "-I", "-c", "import torch"], capture_output=True).returncode == 1
    done = run(images, "--out", tmp_path / "out", "--benchmark")
    assert done.returncode == 0, done.stderr
    assert "3.png: 3 " in done.stdout and "7.png: 7 " in done.stdout and "images/s, median of 50" in done.stdout
    assert "broken.png: skipped, cannot be decoded as an image" in done.stderr
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [entry["pred_class"] for entry in written["predictions"].values()] == ["3", "7"]
    assert list(written["skipped"]) == ["broken.png"]
    assert Image.open(tmp_path / "out/visualizations/3.png.png").width > 200
    for arguments, message in (
        (("none.png",), "error: none.png does not exist"),
        ((images / "broken.png",), "error: none of the images could be predicted"),
        ((), "pass an image, a folder, or --benchmark"),
    ):
        done = run(*arguments)
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("short_run", ["seg"], indirect=True)
def test_scenes_are_segmented_as_the_framework_does(short_run, tmp_path):
    config, checkpoint, log = short_run.config, short_run.checkpoint, str(tmp_path / "log")
    report = deploy_checkpoint(config, checkpoint, tmp_path / "network", size=(120, 152), dynamic=(), work_dir=log)
    network = program_of(tmp_path / "network")
    images = short_run.folder / "scenes/img_dir/val"
    result = infer(config, checkpoint, images, tmp_path / "predictions", device="cpu")
    same = []
    for entry in result.read():
        expected = np.asarray(Image.open(tmp_path / "predictions" / entry["sem_seg"]))
        (actual,) = network.predict(network.read(images / entry["image"]))
        same.append((actual == expected).mean())
    assert min(same) > 0.999
    expected = evaluate(config, checkpoint, log)
    actual = evaluate_deployment(config, report.deployment.folder, log)  # mmsegmentation rounds percents to a hundredth
    assert actual == pytest.approx(expected, abs=0.02, nan_ok=True)


@pytest.mark.parametrize("short_run", ["det"], indirect=True)
def test_detectors_take_their_maps_from_the_graph(short_run, tmp_path):
    config, checkpoint, log = short_run.config, short_run.checkpoint, str(tmp_path / "log")
    metrics, cfg = evaluate(config, checkpoint, log), Config.fromfile(config)
    model = build_model(cfg, load_from_local(checkpoint)["state_dict"])
    images = [preprocessing_of(model)(image) for image in dataset_images(cfg, "test", 3)]
    for precision, points, deviation in (("float32", 1e-3, 1e-4), ("int8", 0.05, 0.3)):
        arguments = dict(precision=precision, images=8, work_dir=log, size=(120, 152), dynamic=())
        report = deploy_checkpoint(config, checkpoint, tmp_path / precision, **arguments)
        assert (tmp_path / precision / "head.safetensors").exists()
        assert "feature maps of neck" in render(report.table())
        outputs = program_of(tmp_path / precision).predict(np.zeros((120, 152, 3), np.uint8))
        assert [output.shape for output in outputs] == [(48, 15, 19), (48, 8, 10), (48, 4, 5)]
        assert evaluate_deployment(config, tmp_path / precision, log) == pytest.approx(metrics, abs=points)

        # After so short a training the metric is near zero: so what the heads make of the maps is compared as well.
        hybrid, head = build_untrained(cfg).eval(), load_file(tmp_path / precision / "head.safetensors")
        normalization = Normalization(**report.deployment.settings["normalization"])
        network = report.deployment.load()
        replace_part(hybrid, "neck", lambda x, n=normalization, network=network: network(n.undo(x)), head)
        for image in images:
            with torch.no_grad():
                pairs = zip(*(named_tensors(m(image, mode="tensor")) for m in (hybrid, model)), strict=True)
            for (_, actual), (_, expected) in pairs:
                assert ((actual - expected).square().mean() / expected.var()).sqrt() < deviation


@pytest.mark.parametrize("short_run", ["det"], indirect=True)
def test_the_plain_network_up_to_its_maps(short_run, tmp_path):
    arguments = dict(part="neck", opset=13, raw=True, dynamic=())
    report = deploy_checkpoint(short_run.config, short_run.checkpoint, tmp_path / "neck.onnx", **arguments)
    assert "backbone and neck; what follows runs in PyTorch" in render(report.table()) and report.opset == 13
    model = build_model(Config.fromfile(short_run.config), load_from_local(short_run.checkpoint)["state_dict"])
    images = torch.randn(3, 3, *image_size(model))
    with torch.no_grad():
        expected = model.neck(model.backbone(images))
    for a, e in zip(OnnxNetwork(report.path)(images), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_accuracy_is_controlled_and_measured_with_the_weights_that_are_deployed(learned, config, deploy_form, tmp_path):
    state = load_from_local(learned.checkpoint)["state_dict"]
    last = {name: torch.zeros_like(value) for name, value in state.items()}
    save_checkpoint({"state_dict": last, "state_dict_ema": state}, tmp_path / "ema.pth")
    few = {**learned.options, "test_dataloader.dataset.indices": list(range(0, 360, 8))}
    settings = dict(
        precision="int8", dynamic=(), images=16, max_drop=0.1, work_dir=str(tmp_path / "log"), cfg_options=few
    )
    # A folder is replaced on request alone.
    shutil.copytree(deploy_form(*FORMS[0]).folder, tmp_path / "network")
    (tmp_path / "network/mine.txt").touch()
    deploy = partial(deploy_checkpoint, config, tmp_path / "ema.pth", tmp_path / "network", ema=True, **settings)
    with pytest.raises(FileExistsError, match="already exists"):
        deploy()
    assert (tmp_path / "network/mine.txt").exists()
    report = deploy(overwrite=True)
    assert not (tmp_path / "network/mine.txt").exists()
    before, after = (report.metrics[when]["accuracy/top1"] for when in ("before", "after"))
    assert before > 90 and before - after <= 0.1


def test_refusals_write_nothing(learned, config, tmp_path):
    out, log = tmp_path / "out/network", str(tmp_path / "log")

    def deploy(checkpoint=learned.checkpoint, options={}, **arguments):
        options = learned.options | {"test_dataloader.dataset.indices": 8} | options
        deploy_checkpoint(config, checkpoint, out, cfg_options=options, work_dir=log, **arguments)

    state = {**load_from_local(learned.checkpoint)["state_dict"], "head.fc.weight": torch.ones(3, 192)}
    save_checkpoint({"state_dict": state}, tmp_path / "other.pth")
    nowhere = {"train_dataloader.dataset.data_root": "nowhere"}
    for arguments, error, message in (
        (
            dict(runtime="tensorrt"),
            ValueError,
            "runtime='tensorrt', .*: expected one of openvino in .*; onnxruntime in",
        ),
        (dict(precision="float16"), ValueError, "precision='float16': .* openvino in float32, bfloat16, int8; onnx"),
        (dict(runtime="onnxruntime", precision="bfloat16"), ValueError, r"onnxruntime in float32, int8\.$"),
        (dict(dynamic=("depth",)), ValueError, "dynamic=depth: expected some of batch, height, width"),
        (dict(batch=0), ValueError, "batch=0: expected a positive int"),
        (dict(size=(0, 64)), ValueError, "height=0: expected a positive int"),
        (dict(opset=17), ValueError, "opset: without effect without raw=True"),
        (dict(raw=True, precision="int8"), ValueError, "precision, work_dir: without effect with raw=True"),
        (dict(logits=True), ValueError, "only whole segmentors return logits"),
        (dict(part="neck2"), ValueError, "part='neck2': expected None, or a part of the model"),
        (dict(checkpoint=tmp_path / "other.pth"), ValueError, "head.fc.weight"),
        (dict(checkpoint=tmp_path / "none.pth"), FileNotFoundError, "none.pth"),
        (dict(precision="int8", options=nowhere), ExplainedError, "nowhere"),
    ):
        with pytest.raises(error, match=message):
            deploy(**arguments)
        assert not out.parent.exists() or not os.listdir(out.parent), arguments
    with pytest.raises(DeploymentError, match=r"accuracy/top1 drops by 0.00 points, allowed -1 \(--max-drop\)"):
        deploy(max_drop=-1, dynamic=())
    assert not os.listdir(out.parent)


@pytest.mark.parametrize("deployed", FORMS[:1], ids="-".join, indirect=True)
def test_folders_are_checked_when_read(config, deployed, learned, tmp_path):
    out = tmp_path / "network"
    shutil.copytree(deployed.folder, out)
    with pytest.raises(DeploymentError, match="returns 10 scores, but the config has 3 classes"):
        evaluate_deployment(config, out, str(tmp_path / "log"), {**learned.options, "model.head.num_classes": 3})
    (out / "model.bin").write_bytes(b"")
    with pytest.raises(DeploymentError, match=r"model.bin is not the file that was deployed"):
        evaluate_deployment(config, out, str(tmp_path / "log"), learned.options)
    with pytest.raises(FileNotFoundError, match=r"is not a deployed network.*mmrepmlp deploy"):
        evaluate_deployment(config, tmp_path, str(tmp_path / "log"), learned.options)


@pytest.mark.parametrize("deployed", FORMS[:3], ids="-".join, indirect=True)
def test_a_processor_without_instructions_for_a_precision_is_named(deployed, monkeypatch):
    settings = deployed.settings
    monkeypatch.setattr("mmrepmlp.export.openvino.is_fast_here", lambda precision: False)
    assert any(f"no instructions for {settings['precision']}" in remark for remark in module.remarks_on(settings))
