# SPDX-License-Identifier: Apache-2.0
"""What the stand-alone program reads, and what it makes of a graph's outputs."""

import json
import random
import runpy
import shutil
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from torch.nn import functional as F

from mmrepmlp.verbs.deploy.folder import PROGRAM

PROGRAM_NAMES = runpy.run_path(str(PROGRAM))
PAD = dict(type="Pad", size=[512, 512], size_divisor=None, pad_to_square=False, value=0)
RESIZE = dict(type="Resize", scale=[304, 304], keep_ratio=True, backend="cv2", interpolation="bilinear")
CROP = dict(type="CenterCrop", crop_size=[60, 60])


class PlainGraph:
    """A function as a graph."""

    calls = 1

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


def network(steps=(), output="classes", channels=3, kind="uint8", graph=None):
    """A segmentor whose second class is what is light."""
    made = object.__new__(PROGRAM_NAMES["Network"])
    made.input = dict(batch=None, height=None, width=None, channels=channels, type=kind, color_type="unchanged")
    made.steps, made.group = json.loads(json.dumps(steps)), 2
    made.graph = graph or PlainGraph(lambda x: [(x[..., 0] > 128).astype(np.uint8)])
    made.settings = dict(
        task="segmentation", output=dict(name=output, threshold=0.3), classes=["dark", "光"], palette=None
    )
    return made


def half_light(height=120, width=152, channels=3):
    image = np.zeros((height, width, channels), np.uint8)
    image[:, width // 2 :] = 255
    return image


@pytest.mark.parametrize("steps", [[], [RESIZE], [RESIZE, PAD], [PAD, RESIZE], [RESIZE, PAD, RESIZE]])
def test_classes_have_the_size_and_the_place_of_the_image(steps):
    image, made = half_light(), network(steps)
    labels = made.classes(image, made.predict(image))
    assert labels.shape == (120, 152) and set(np.unique(labels)) == {0, 1}
    wrong = labels != (image[..., 0] > 0)
    assert not wrong[:, :75].any() and not wrong[:, 77:].any()  # up to what resizing does at the edge


@pytest.mark.parametrize("steps", [[CROP], [RESIZE, CROP], [dict(CROP, crop_size=[40, 40]), RESIZE, PAD]])
def test_a_crop_leaves_the_rest_without_a_class(steps, tmp_path):
    image, made = half_light(), network(steps)
    labels = made.classes(image, made.predict(image))
    side = dict(zip((1, 2, 3), (60, 30, 40)))[len(steps)]
    top, left = (120 - side) // 2, (152 - side) // 2
    inside = np.s_[top : top + side, left : left + side]
    assert (labels == -1).sum() == 120 * 152 - side * side
    assert (labels[inside][:, : side // 2 - 1] == 0).all() and (labels[inside][:, side // 2 + 1 :] == 1).all()
    files = PROGRAM_NAMES["write"](made, tmp_path, "a", image, None, labels, [(1, 0.5)])
    assert (cv2.imread(str(tmp_path / files["sem_seg"]), -1)[0] == 255).all()


def test_logits_are_resized_as_the_framework_does():
    logits = np.random.RandomState(0).randn(5, 30, 38).astype(np.float32)
    made = network([dict(RESIZE, scale=[38, 30])], "logits", graph=lambda x: [logits[None]])
    image = half_light()
    resized = F.interpolate(torch.from_numpy(logits)[None], (120, 152), mode="bilinear")[0]
    assert (made.classes(image, made.predict(image)) == resized.argmax(0).numpy()).mean() > 0.999
    binary = network(made.steps, "logits", graph=lambda x: [logits[None, :1]])
    assert ((binary.classes(image, binary.predict(image)) == 1) == (resized[0].sigmoid() > 0.3).numpy()).mean() > 0.999


@pytest.mark.parametrize("color", PROGRAM_NAMES["READ_FLAGS"])
def test_images_are_read_as_mmcv_does(color, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 65536, (8, 6, 4)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), pixels[..., :3])
    cv2.imwrite(str(tmp_path / "alpha.png"), pixels.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "grey.png"), pixels[..., 0])
    turned = Image.fromarray(pixels[..., :3].astype(np.uint8))
    turned.getexif()[274] = 6  # the camera was turned
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    made = network()
    made.input["color_type"] = color
    for path in tmp_path.iterdir():
        expected = LoadImageFromFile(color_type=color)(dict(img_path=str(path)))["img"]
        actual = made.read(path)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected.reshape(actual.shape))


def test_results_keep_apart_what_lies_apart(tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "images/out"
    names = ["a.png", "sub/a.png", "sub_a.png", "maps/a.png", ".hidden.png", ".cache/a.png", "a_classes.png"]
    for i, name in enumerate(names):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / name), half_light(10 + i, 20))
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for _ in range(2):  # what it wrote is no image to predict
        PROGRAM_NAMES["predict_all"](network(), images, out)
        written = json.loads((out / "predictions.json").read_text())
        assert list(written["skipped"]) == ["gone.png"]
        assert sorted(written["predictions"]) == sorted(name for name in names if not name.startswith("."))
    for name, entry in written["predictions"].items():
        assert cv2.imread(str(out / entry["sem_seg"]), -1).shape == (10 + names.index(name), 20)
        assert cv2.imread(str(out / entry["visualization"])).shape[1] == 300  # 15 times 20 pixels
    assert "a.png: dark 50.0%  光 50.0%" in capsys.readouterr().out
    shutil.rmtree(out)
    PROGRAM_NAMES["predict_all"](network(), images, images)
    assert len(json.loads((images / "predictions.json").read_text())["predictions"]) == len(written["predictions"]) - 1


class CountingGraph:
    """A graph that remembers the batches that it gets, and how many calls there are at a time."""

    calls = 2

    def __init__(self, fail_at=None):
        self.batches, self.active, self.fail_at, self.lock = [], 0, fail_at, threading.Lock()

    def __call__(self, x):
        with self.lock:
            self.batches.append(x.shape)
            number = len(self.batches)
            self.active += 1
            assert self.active <= self.calls
        time.sleep(0.002 * random.random())
        with self.lock:
            self.active -= 1
        if number == self.fail_at:
            raise RuntimeError("out of memory")
        return [x[..., 0].max((1, 2))]


def write_images(folder, sizes):
    folder.mkdir()
    paths = []
    for i, (height, width) in enumerate(sizes):
        paths.append(folder / f"{i:03d}.png")
        cv2.imwrite(str(paths[-1]), np.full((height, width, 3), i, np.uint8))
    return paths


@pytest.mark.parametrize("group", [1, 3, 8])
def test_a_stream_keeps_the_order_and_groups_images_of_one_size(group, tmp_path):
    generator = random.Random(0)
    paths = write_images(tmp_path / "images", [(4 + generator.randint(0, 1), 5) for _ in range(40)])
    for broken in (3, 4, 20):
        paths[broken].write_bytes(b"")
    graph = CountingGraph()
    made = network(graph=graph)
    made.group = group
    results = list(made.stream(paths))
    assert len(results) == len(paths)
    for i, (image, outputs) in enumerate(results):
        if i in (3, 4, 20):
            assert image is None and "cannot be decoded" in str(outputs)
        else:
            assert image.max() == i and outputs[0] == i
    assert max(shape[0] for shape in graph.batches) == min(group, 3) or group == 8
    assert sum(shape[0] for shape in graph.batches) == len(paths) - 3


def test_a_graph_of_a_fixed_batch_gets_full_batches(tmp_path):
    paths = write_images(tmp_path / "images", [(4, 5)] * 7)
    graph = CountingGraph()
    made = network(graph=graph)
    made.input["batch"] = made.group = 3
    assert [int(outputs[0]) for _, outputs in made.stream(paths)] == list(range(7))
    assert graph.batches == [(3, 4, 5, 3)] * 3
    assert int(made.predict(made.read(paths[5]))[0]) == 5 and graph.batches[-1] == (3, 4, 5, 3)


def test_a_stream_reads_a_few_images_ahead(tmp_path):
    paths = write_images(tmp_path / "images", [(4, 5)] * 60)
    made, reads = network(graph=CountingGraph()), []
    read = made.read
    made.read = lambda path: reads.append(path) or read(path)
    stream = made.stream(paths)
    ahead = []
    for i, _ in enumerate(stream):
        time.sleep(0.005)
        ahead.append(len(reads) - i - 1)
    assert max(ahead) <= 2 * PROGRAM_NAMES["READERS"] + (CountingGraph.calls + 2) * made.group


def test_an_error_of_the_graph_ends_the_program_and_leaves_no_file(tmp_path):
    write_images(tmp_path / "images", [(4, 5)] * 9)
    made = network(graph=CountingGraph(fail_at=3))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(made.stream(sorted((tmp_path / "images").iterdir())))
    made = network(graph=CountingGraph(fail_at=1))
    with pytest.raises(RuntimeError, match="out of memory"):
        PROGRAM_NAMES["predict_all"](made, tmp_path / "images", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_are_drawn(channels):
    image = half_light(channels=channels).astype(np.uint16) * 257
    made = network(channels=channels, kind="uint16")
    labels = made.classes(image, made.predict(image))
    picture = PROGRAM_NAMES["draw"](made, image, labels, [(0, 0.5), (1, 0.5)])
    assert picture.shape == (240 + 42, 304, 3) and picture.dtype == np.uint8
    plain = network(channels=3)
    plain.settings["classes"] = ["dark", "1"]  # a name without letters that can be drawn becomes a number
    np.testing.assert_array_equal(PROGRAM_NAMES["draw"](plain, image, labels, [(0, 0.5), (1, 0.5)]), picture)


def test_images_of_another_type_are_skipped():
    made = network()
    with pytest.raises(ValueError, match="is uint16 with 3 channels, but the graph takes uint8 with 3"):
        made.predict(half_light().astype(np.uint16))
    with pytest.raises(ValueError, match="is uint8 with 4 channels"):
        made.predict(half_light(channels=4))
    seen = []
    network(kind="uint16", graph=lambda x: seen.append(x) or [x[..., 0]]).predict(half_light())
    assert seen[0].dtype == np.uint16 and seen[0].max() == 255


def test_any_terminal_can_print_names_of_any_letters(tmp_path):
    code = f"import runpy, sys; sys.argv[1:] = ['光.png']; runpy.run_path({str(PROGRAM)!r})['main']()"
    command, environment = [sys.executable, "-X", "utf8=0", "-c", code], {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.stderr == b"error: \\u5149.png does not exist\n" and done.returncode == 1


@pytest.mark.parametrize("capable", [True, False])
def test_bfloat16_is_float32_on_a_processor_without_it(capable, tmp_path, monkeypatch, capsys):
    openvino = pytest.importorskip("openvino")
    x = openvino.opset13.parameter([-1, -1, 3], np.float32)
    openvino.save_model(openvino.Model([openvino.opset13.exp(x)], [x]), tmp_path / "model.xml")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["BF16"] if capable else ["FP32"])
    settings = dict(precision="bfloat16", input=dict(height=None, width=4))
    graph = PROGRAM_NAMES["OpenVinoGraph"](tmp_path / "model.xml", settings, 1)
    hint = graph.compiled.get_property("INFERENCE_PRECISION_HINT")
    assert hint == (openvino.Type.bf16 if capable else openvino.Type.f32)
    assert ("no instructions for bfloat16: runs in float32" in capsys.readouterr().out) is not capable
