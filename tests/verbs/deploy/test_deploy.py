# SPDX-License-Identifier: Apache-2.0
"""Deployed networks against the frameworks on real digits and scenes, and what is refused."""

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import venv
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
from tests.fixtures import CONFIG
from tests.helpers import render

pytestmark = pytest.mark.slow
FORMS = [("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8")]
FORMS += [("onnxruntime", "float32"), ("onnxruntime", "int8")]

SEGMENTOR = pytest.mark.parametrize("short_run", ["seg"], indirect=True)


def program_of(folder: Path) -> object:
    """The network of a deployed folder, as its own program loads it."""
    return runpy.run_path(str(folder / "run.py"))["Network"](folder, threads=1)


@pytest.fixture(scope="module")
def accuracy(learned, tmp_path_factory):
    log = str(tmp_path_factory.mktemp("log"))
    return evaluate(CONFIG, learned.checkpoint, log, cfg_options=learned.options)["accuracy/top1"]


@pytest.fixture(scope="module")
def predictions(learned, tmp_path_factory, digits):
    """What the framework's inferencer predicts for each test image."""
    out = tmp_path_factory.mktemp("predictions")
    result = infer(CONFIG, learned.checkpoint, digits / "val", out, cfg_options=learned.options, device="cpu")
    return {entry["image"]: entry for entry in result.read()}


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def deployed(request, learned, build_once) -> Deployment:
    runtime, precision = request.param

    def deploy(folder: Path) -> None:
        options = dict(runtime=runtime, precision=precision, images=64, cfg_options=learned.options)
        log = str(folder.with_name(f"{folder.name}_log"))
        report = deploy_checkpoint(CONFIG, learned.checkpoint, folder, verify_on="test", work_dir=log, **options)
        assert "accuracy/top1" in render(report.table())

    return Deployment.read(build_once(f"{runtime}_{precision}", deploy))


def test_the_program_predicts_what_the_framework_does(deployed, learned, predictions, accuracy, digits, tmp_path):
    folder, exact = deployed.folder, deployed.settings["precision"] == "float32"
    files = {"deploy.json", "requirements.txt", "run.py"}
    graph = {"model.xml", "model.bin"} if deployed.settings["runtime"] == "openvino" else {"model.onnx"}
    assert {path.name for path in folder.iterdir()} == files | graph
    network = program_of(folder)
    right = 0
    for name, expected in predictions.items():
        (scores,) = network.predict(network.read(digits / "val" / name))
        right += network.name_of(int(scores.argmax())) == Path(name).parent.name
        if exact:
            assert scores.argmax() == expected["pred_label"]
            np.testing.assert_allclose(scores, expected["pred_scores"], atol=1e-4)
    metrics = evaluate_deployment(CONFIG, folder, str(tmp_path), learned.options)
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
        assert {entry["shape"][0] for entry in proof["errors"]} == {1, 3}
    else:
        assert proof["agreement"] >= 0.9 and proof["images"] == "64 images of the test set"
    assert settings["classes"] == list("0123456789")
    assert settings["normalization"]["channels"] == [2, 1, 0]


def test_deployments_side_by_side(deployed, learned, tmp_path):
    folder = deployed.folder
    shutil.copytree(folder, tmp_path / "copy")
    few = {**learned.options, "test_dataloader.dataset.indices": 16}
    targets, log = [CONFIG, folder, tmp_path / "copy"], str(tmp_path / "log")
    report = benchmark(targets, repeats=1, work_dir=log, cfg_options=few)
    one, two = report.rows
    assert (one["model"], two["model"]) == (folder.name, "copy")
    assert one["accuracy/top1"] == two["accuracy/top1"] > 50 and min(one["milliseconds"], two["milliseconds"]) > 0
    assert one["megabytes"] == two["megabytes"] == deployed.megabytes > 0.1
    assert f"{deployed.settings['runtime']} {deployed.settings['precision']}" in render(report.table())
    (row,) = benchmark([folder], repeats=1).rows  # without the config, what was measured when it was deployed
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
        ((), "name an image or a folder, or pass --benchmark"),
    ):
        done = run(*arguments)
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


@SEGMENTOR
def test_scenes_are_segmented_as_the_framework_does(short_run, tmp_path):
    config, checkpoint, log = short_run.config, short_run.checkpoint, str(tmp_path / "log")
    report = deploy_checkpoint(config, checkpoint, tmp_path / "network", size=(120, 152), work_dir=log)
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


@SEGMENTOR
def test_a_sliding_segmentor_is_deployed_as_its_window(short_run, tmp_path):
    config, checkpoint, log = short_run.config, short_run.checkpoint, str(tmp_path / "log")
    slide = {"model.test_cfg": dict(mode="slide", crop_size=(96, 128), stride=(64, 96))}
    arguments = dict(runtime="onnxruntime", logits=True, cfg_options=slide, work_dir=log)
    given = deploy_checkpoint(config, checkpoint, tmp_path / "network", **arguments).deployment.settings["input"]
    assert (given["height"], given["width"]) == (96, 128)
    expected = evaluate(config, checkpoint, log, cfg_options=slide)
    actual = evaluate_deployment(config, tmp_path / "network", log, slide)
    assert actual == pytest.approx(expected, abs=0.02, nan_ok=True)
    with pytest.raises(ValueError, match=r"is 152x120 after preprocessing, and the graph takes 128x96"):
        program_of(tmp_path / "network").predict(np.zeros((120, 152, 3), np.uint8))


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("short_run", ["det"], indirect=True)
def test_detectors_take_their_maps_from_the_graph(short_run, tmp_path, precision):
    config, log = short_run.config, str(tmp_path / "log")
    size = None if precision == "float32" else (120, 152)
    arguments = dict(precision=precision, images=16, work_dir=log, size=size)
    report = deploy_checkpoint(config, short_run.checkpoint, tmp_path / "network", **arguments)
    assert "head.safetensors" in os.listdir(tmp_path / "network") and "feature maps of neck" in render(report.table())
    assert report.deployment.settings["input"]["height"] == (size or [None])[0]  # the pipeline keeps the ratio of sides
    outputs = program_of(tmp_path / "network").predict(np.zeros((120, 152, 3), np.uint8))
    assert [output.shape for output in outputs] == [(48, 15, 19), (48, 8, 10), (48, 4, 5)]
    expected = evaluate(config, short_run.checkpoint, log)
    actual = evaluate_deployment(config, tmp_path / "network", log)
    assert actual == pytest.approx(expected, abs=1e-3 if precision == "float32" else 0.05)

    # After so short a training the metric is near zero: so what the heads make of the maps is compared as well.
    cfg = Config.fromfile(config)
    model = build_model(cfg, load_from_local(short_run.checkpoint)["state_dict"])
    hybrid, head = build_untrained(cfg).eval(), load_file(tmp_path / "network/head.safetensors")
    normalization = Normalization(**report.deployment.settings["normalization"])
    network = report.deployment.load()
    replace_part(hybrid, "neck", lambda x: network(normalization.undo(x)), head)
    for image in dataset_images(cfg, "test", 3):
        inputs = preprocessing_of(model)(image)
        with torch.no_grad():
            pairs = zip(*(named_tensors(detector(inputs, mode="tensor")) for detector in (hybrid, model)), strict=True)
        for (_, actual), (_, expected) in pairs:
            error = ((actual - expected).square().mean() / expected.var()).sqrt()
            assert error < (1e-4 if precision == "float32" else 0.3)


@pytest.mark.parametrize("short_run", ["det"], indirect=True)
def test_the_plain_network_up_to_its_maps(short_run, tmp_path):
    arguments = dict(part="neck", opset=13, raw=True)
    report = deploy_checkpoint(short_run.config, short_run.checkpoint, tmp_path / "neck.onnx", **arguments)
    assert "backbone and neck; what follows runs in PyTorch" in render(report.table()) and report.opset == 13
    model = build_model(Config.fromfile(short_run.config), load_from_local(short_run.checkpoint)["state_dict"])
    images = torch.randn(3, 3, *image_size(model))
    with torch.no_grad():
        expected = model.neck(model.backbone(images))
    for a, e in zip(OnnxNetwork(report.path)(images), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_accuracy_is_controlled_and_measured_with_the_weights_that_are_deployed(learned, accuracy, tmp_path):
    state = load_from_local(learned.checkpoint)["state_dict"]
    last = {name: torch.zeros_like(value) for name, value in state.items()}
    save_checkpoint({"state_dict": last, "state_dict_ema": state}, tmp_path / "ema.pth")
    few = {**learned.options, "test_dataloader.dataset.indices": list(range(0, 360, 4))}
    report = deploy_checkpoint(
        CONFIG, tmp_path / "ema.pth", tmp_path / "network", ema=True, precision="int8", images=16, max_drop=0.1,
        work_dir=str(tmp_path / "log"), cfg_options=few,
    )  # fmt: skip
    before, after = (report.metrics[when]["accuracy/top1"] for when in ("before", "after"))
    assert before > 90 and before - after <= 0.1


def test_refusals_write_nothing(learned, tmp_path):
    out, log = tmp_path / "out/network", str(tmp_path / "log")

    def deploy(checkpoint=learned.checkpoint, options={}, **arguments):
        deploy_checkpoint(CONFIG, checkpoint, out, cfg_options=learned.options | options, work_dir=log, **arguments)

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
        (dict(logits=True), ValueError, "only whole segmentors end in logits"),
        (dict(part="neck2"), ValueError, "part='neck2': expected None, or a part of the model"),
        (dict(checkpoint=tmp_path / "other.pth"), ValueError, "head.fc.weight"),
        (dict(checkpoint=tmp_path / "none.pth"), FileNotFoundError, "none.pth"),
        (dict(precision="int8", options=nowhere), ExplainedError, "nowhere"),
    ):
        with pytest.raises(error, match=message):
            deploy(**arguments)
        assert not out.parent.exists() or not os.listdir(out.parent), arguments
    few = {"test_dataloader.dataset.indices": 8}
    with pytest.raises(DeploymentError, match=r"accuracy/top1 drops by 0.00 points, allowed -1 \(--max-drop\)"):
        deploy(max_drop=-1, options=few)
    assert not os.listdir(out.parent)


@pytest.mark.parametrize("deployed", FORMS[:1], ids="-".join, indirect=True)
def test_folders_are_replaced_on_request_alone_and_checked_when_read(deployed, learned, tmp_path):
    out, options = tmp_path / "network", dict(cfg_options=learned.options, work_dir=str(tmp_path / "log"))
    shutil.copytree(deployed.folder, out)
    (out / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="already exists"):
        deploy_checkpoint(CONFIG, learned.checkpoint, out, **options)
    assert (out / "mine.txt").exists()
    deploy_checkpoint(CONFIG, learned.checkpoint, out, overwrite=True, **options)
    assert not (out / "mine.txt").exists()
    with pytest.raises(DeploymentError, match="gives 10 scores, and the config has 3 classes"):
        evaluate_deployment(CONFIG, out, str(tmp_path / "log"), {**learned.options, "model.head.num_classes": 3})
    (out / "model.bin").write_bytes(b"")
    with pytest.raises(DeploymentError, match=r"model.bin is not the file that was deployed"):
        evaluate_deployment(CONFIG, out, str(tmp_path / "log"), learned.options)
    with pytest.raises(FileNotFoundError, match=r"is not a deployed network.*mmrepmlp deploy"):
        evaluate_deployment(CONFIG, tmp_path, str(tmp_path / "log"), learned.options)


@pytest.mark.parametrize("deployed", FORMS[:3], ids="-".join, indirect=True)
def test_a_processor_without_instructions_for_a_precision_is_named(deployed, monkeypatch):
    settings = deployed.settings
    monkeypatch.setattr("mmrepmlp.export.openvino.is_fast_here", lambda precision: False)
    assert any(f"no instructions for {settings['precision']}" in remark for remark in module.remarks_on(settings))
