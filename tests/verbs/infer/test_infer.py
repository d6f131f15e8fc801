# SPDX-License-Identifier: Apache-2.0
"""Predictions of all three frameworks, against their own inferencers on the plain config."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmrepmlp.apis import infer, reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.cli import main
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import innermost_dataset, read_config, trained_metainfo
from mmrepmlp.verbs.infer import predictor
from mmrepmlp.verbs.infer.images import ImageError, is_loader
from mmrepmlp.verbs.infer.predictor import Predictor, complete_palette
from mmrepmlp.verbs.model import build_untrained


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with images in several modes and depths, and one that is broken."""
    folder = tmp_path / "images"
    (folder / "b/c d").mkdir(parents=True)
    pixels = np.random.randint(0, 256, (120, 152, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:70, :90]).convert("L").save(folder / "b/a.png")
    Image.fromarray(pixels).convert("RGBA").resize((200, 120)).save(folder / "b/c d/ü [x].png")
    (folder / "b/broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def several(images) -> Path:
    """The images, of three sizes, two of which are of one."""
    Image.open(images / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / "b.png")
    return images


NAMES = ["a.png", "b/a.png", "b/c d/ü [x].png"]
SEVERAL = [*NAMES, "b.png"]


def predict(config, checkpoint, images, out, **options) -> tuple[dict, dict[str, dict]]:
    """What predicted, and the predictions by image; also checks that the pictures are there."""
    result = infer(config, checkpoint, images, out, device="cpu", **options)
    predictions = list(result.read())
    assert len(predictions) == result.predicted
    for prediction in predictions:
        picture = cv2.imread(str(out / prediction["visualization"]))
        image = cv2.imread(str(images / prediction["image"]))
        assert prediction["visualization"] == f"visualizations/{prediction['image']}"
        assert (prediction["height"], prediction["width"]) == image.shape[:2]
        assert picture.shape[1] / image.shape[1] == picture.shape[0] / image.shape[0]
        factor = picture.shape[0] // image.shape[0]
        assert (picture != image.repeat(factor, 0).repeat(factor, 1)).any()  # something is drawn
    content = {**json.loads((out / "model.json").read_text()), "skipped": result.skipped}
    return content, {prediction["image"]: prediction for prediction in predictions}


def forms(config, checkpoint, folder) -> list[tuple]:
    """Each form's config with each form's checkpoint."""
    report = reparameterize_checkpoint(config, checkpoint, folder / "deploy.pth")
    return [(c, k) for c in (config, report.config) for k in (checkpoint, report.checkpoint)]


@pytest.mark.slow
def test_classes_are_those_of_the_inferencer_whatever_the_batch(trained, config, several, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    pairs, alone = forms(config, trained.checkpoint, tmp_path), []
    for index, (form, checkpoint) in enumerate(pairs):
        content, found = predict(form, checkpoint, several, tmp_path / f"out{index}")
        assert list(found) == SEVERAL and content["classes"] == [str(digit) for digit in range(10)]
        assert [(item["image"], bool(item["reason"])) for item in content["skipped"]] == [("b/broken.jpg", True)]
        matching = pairs[0] if checkpoint == trained.checkpoint else pairs[3]
        plain = ImageClassificationInferencer(str(matching[0]), pretrained=str(checkpoint), device="cpu")
        for name in SEVERAL:
            (expected,) = plain(str(several / name))
            assert found[name]["pred_label"] == expected["pred_label"]
            assert found[name]["pred_class"] == expected["pred_class"]
            scores = np.float32(found[name]["pred_scores"])
            if (form, checkpoint) == matching:
                assert (scores == expected["pred_scores"]).all() and found[name]["pred_score"] == expected["pred_score"]
            np.testing.assert_allclose(scores, expected["pred_scores"], atol=1e-6)
        alone.append(found)
    _, together = predict(config, trained.checkpoint, several, tmp_path / "8", batch=8)
    assert list(together) == SEVERAL
    for name, prediction in together.items():
        np.testing.assert_allclose(prediction["pred_scores"], alone[0][name]["pred_scores"], atol=1e-5)


def expected_segments(inferencer, path, out, found) -> None:
    expected = inferencer(str(path))["predictions"]
    labels = cv2.imread(str(out / found["sem_seg"]), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8 and (labels == expected).all()
    assert found["labels"] == np.unique(expected).tolist()


def expected_objects(inferencer, path, out, found) -> None:
    (expected,) = inferencer(str(path), no_save_vis=True, pred_score_thr=0)["predictions"]
    assert {name: found[name] for name in expected} == expected and len(found["labels"]) > 1
    assert found["names"] == [str(label) for label in found["labels"]]


@pytest.mark.slow
def test_maps_and_boxes_are_those_of_the_inferencer_whatever_the_batch(short_run, several, tmp_path):
    if short_run.task == "seg":
        from mmseg.apis import MMSegInferencer as Inferencer

        check, names = expected_segments, ["background", *map(str, range(10))]
    else:
        from mmdet.apis import DetInferencer as Inferencer

        check, names = expected_objects, [str(digit) for digit in range(10)]
    alone = []
    for form, checkpoint in forms(short_run.config, short_run.checkpoint, tmp_path)[::3]:
        out = tmp_path / str(len(alone))
        content, found = predict(form, checkpoint, several, out, score=0.0)
        assert list(found) == SEVERAL and content["classes"] == names
        plain = Inferencer(str(form), weights=str(checkpoint), device="cpu")
        for name in SEVERAL:
            check(plain, several / name, out, found[name])
        alone.append(found)
    # But for images that mmdetection pads, as in a batch of its own inferencer.
    _, together = predict(short_run.config, short_run.checkpoint, several, tmp_path / "8", score=0.0, batch=8)
    assert list(together) == SEVERAL
    for name, expected in alone[0].items():
        assert together[name].keys() == expected.keys()
        if short_run.task == "seg":
            maps = [cv2.imread(str(tmp_path / out / expected["sem_seg"]), cv2.IMREAD_UNCHANGED) for out in "08"]
            assert (maps[0] == maps[1]).mean() > 0.99  # ties


@pytest.mark.slow
def test_masks_are_written_as_run_lengths(images, tmp_path):
    from mmdet.apis import DetInferencer
    from pycocotools.mask import decode

    cfg = read_config("mmdet::mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py")
    cfg.model.roi_head.bbox_head.fc_out_channels = 32
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (160, 160)
    cfg.dump(tmp_path / "config.py")
    checkpoint = random_checkpoint(tmp_path / "config.py", tmp_path / "random.pth")
    content, found = predict(tmp_path / "config.py", checkpoint, images, tmp_path / "out", score=0.0)
    assert content["classes"][:2] == ["person", "bicycle"]  # of the config: the checkpoint tells none
    plain = DetInferencer(str(tmp_path / "config.py"), weights=str(checkpoint), device="cpu")
    (expected,) = plain(str(images / "a.png"), no_save_vis=True, pred_score_thr=0)["predictions"]
    assert {name: found["a.png"][name] for name in expected} == expected and found["a.png"]["masks"]
    assert decode(found["a.png"]["masks"][0]).shape == (120, 152)


def random_checkpoint(config, path) -> Path:
    """Weights of a config's model, never trained, without names of classes."""
    save_checkpoint({"state_dict": build_untrained(read_config(config)).state_dict()}, path)
    return path


def test_one_image_and_an_existing_folder(config, images, tmp_path):
    checkpoint, out = random_checkpoint(config, tmp_path / "random.pth"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    content, found = predict(config, checkpoint, images / "b", out)
    assert list(found) == ["a.png", "c d/ü [x].png"] and content["classes"] is None
    assert found["a.png"]["pred_class"] == str(found["a.png"]["pred_label"])  # without names, the number
    with pytest.raises(FileExistsError, match=r"predictions\.jsonl already exists; choose another path or pass"):
        infer(config, checkpoint, images / "a.png", out)
    result = infer(config, checkpoint, images / "a.png", out, overwrite=True)
    assert [item["image"] for item in result.read()] == ["a.png"] and result.skipped == []
    assert (out / "mine.txt").read_text() == "precious" and not list(out.rglob("*.tmp"))


def test_names_that_are_no_text(config, tmp_path):
    checkpoint, folder = random_checkpoint(config, tmp_path / "random.pth"), tmp_path / "images"
    good, broken = (os.fsdecode(name) for name in (b"a\xff.png", b"b\xff.png"))
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / good)
    (folder / broken).touch()
    result = infer(config, checkpoint, folder, tmp_path / "out")
    assert "skipped b\\udcff.png: the file is empty\n" in str(result)
    (found,) = result.read()
    assert [json.loads(line)["image"] for line in result.file.read_text().splitlines()] == [good, broken]
    assert found["image"] == good and (tmp_path / "out" / found["visualization"]).is_file()


def test_a_run_without_any_readable_image_fails(config, images, tmp_path):
    checkpoint = random_checkpoint(config, tmp_path / "random.pth")
    with pytest.raises(ImageError, match=r"None of the images can be read. .*broken\.jpg: it is not an image"):
        infer(config, checkpoint, images / "b/broken.jpg", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_said_before_the_first_image(config, images, tmp_path):
    checkpoint = random_checkpoint(config, tmp_path / "random.pth")
    for options, message in {
        ("model.head.num_classes", 7): "head.fc.weight",
        ("default_scope", "mmpose"): "default_scope='mmpose': expected one of mmpretrain, mmseg, mmdet",
        ("test_dataloader", None): "sets no test_dataloader",
    }.items():
        with pytest.raises(ValueError, match=message):
            infer(config, checkpoint, images, tmp_path / "out", cfg_options=dict([options]))
    with pytest.raises(MMRepMLPError, match="cannot be loaded to map_location='nonsense'"):
        infer(config, checkpoint, images, tmp_path / "out", device="nonsense")
    assert not (tmp_path / "out").exists()


def test_of_pipelines_of_all_kinds_is_left_what_prepares_an_image():
    pipeline = [dict(type="mmseg.LoadImageFromFile"), dict(type="Resize", scale=64), dict(type="LoadAnnotations")]
    inner = dict(type="CustomDataset", pipeline=pipeline)
    for dataset in (inner, dict(type="ConcatDataset", datasets=[inner]), dict(type="RepeatDataset", dataset=inner)):
        loader = dict(dataset=dataset)
        cfg = Config(dict(default_scope="mmseg", model=dict(type="M"), test_dataloader=loader))
        assert [is_loader(step) for step in innermost_dataset(cfg).pipeline] == [True, False, True]


def test_names_and_colors_come_from_the_checkpoint_of_any_version():
    assert trained_metainfo(dict(dataset_meta=dict(CLASSES=("a",), palette=[[1, 2, 3]]))) == dict(
        classes=("a",), palette=[[1, 2, 3]]
    )
    assert trained_metainfo(dict(CLASSES=["a", "b"])) == dict(classes=["a", "b"])
    assert trained_metainfo(dict(epoch=3)) == trained_metainfo(dict(dataset_meta=dict(palette="random"))) == {}
    assert complete_palette([[1, 2, 3]], 3)[0] == (1, 2, 3) and len(complete_palette(None, 300)) == 300
    assert complete_palette(None, 3) == complete_palette(None, 5)[:3]


@pytest.mark.slow
def test_the_command_reports_what_it_skips(trained, config, images, tmp_path, capsys):
    main(["infer", str(config), str(trained.checkpoint), str(images), "--out", f"{tmp_path}/out", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "b/broken.jpg: it is not an image" in printed
    assert printed.endswith(f"{tmp_path}/out/predictions.jsonl: predictions for 3 images\n")
    with pytest.raises(SystemExit, match="error: None of the images can be read"):
        main(["infer", str(config), str(trained.checkpoint), str(images / "b/broken.jpg"), "--out", f"{tmp_path}/none"])


@pytest.mark.parametrize("batch", [1, 2])
def test_workers_and_pictures_change_no_prediction(config, several, tmp_path, monkeypatch, batch):
    checkpoint, lines, stream = random_checkpoint(config, tmp_path / "random.pth"), [], Predictor.stream
    monkeypatch.setattr(predictor, "IMAGES_PER_WORKER", 1)
    for workers in (0, 2):

        def with_workers(self, *arguments, workers=workers):
            self.workers = workers  # as on a GPU
            return stream(self, *arguments)

        monkeypatch.setattr(Predictor, "stream", with_workers)
        out = tmp_path / f"{workers}"
        infer(config, checkpoint, several, out, device="cpu", batch=batch, visualize=bool(workers))
        lines.append([json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()])
        assert (out / "visualizations").exists() == bool(workers)
    for line in lines[1]:
        assert line.pop("visualization", "") or "reason" in line
    assert lines[0] == lines[1] and len(lines[0]) == len(SEVERAL) + 1


class Interrupted(Exception):
    """What ends a run from outside."""


@pytest.mark.parametrize("batch", [1, 2])
def test_what_an_interrupted_run_predicted_is_there(config, images, tmp_path, monkeypatch, batch):
    checkpoint, predict, calls = random_checkpoint(config, tmp_path / "random.pth"), Predictor.predict, []

    def fail_later(self, batch):
        calls.append(len(batch))
        if len(calls) > 1:
            raise Interrupted
        return predict(self, batch)

    monkeypatch.setattr(Predictor, "predict", fail_later)
    with pytest.raises(Interrupted):
        infer(config, checkpoint, images, tmp_path / "out", batch=batch)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == NAMES[:batch] and calls[0] == batch
    assert all((tmp_path / "out" / line["visualization"]).is_file() for line in lines)


def test_weights_under_the_names_of_a_wrapper_are_those_that_predict(trained, config, tmp_path):
    content = load_from_local(trained.checkpoint)
    state = {f"student.{name}": value for name, value in content["state_dict"].items()}
    save_checkpoint({"meta": content["meta"], "state_dict": state}, tmp_path / "x.pth")
    model = Predictor(read_config(config), tmp_path / "x.pth").model
    assert all(torch.equal(value, content["state_dict"][name]) for name, value in model.state_dict().items())
