# SPDX-License-Identifier: Apache-2.0
"""What a graph is made for: the images that the dataset has, in type, channels, size and padding."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import deploy_checkpoint, evaluate, infer
from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.deploy.folder import DeploymentError
from mmrepmlp.verbs.model import build_untrained
from mmrepmlp.verbs.test.evaluate_deployment import GraphEvaluator

pytestmark = pytest.mark.slow
NUMBER = 4


class Segmentor:
    """A small segmentor with random weights, and images of some type for it."""

    def __init__(self, root: Path, channels: int, dtype: type) -> None:
        largest, random = np.iinfo(dtype).max, np.random.RandomState(0)
        for folder in ("img", "ann"):
            (root / folder).mkdir()
        for i in range(NUMBER):
            mask = random.rand(40 + 4 * i, 60) > 0.5
            image = random.rand(*mask.shape, channels) * largest * (0.3 + 0.7 * mask[..., None])
            cv2.imwrite(str(root / f"img/{i}.png"), image.astype(dtype))
            cv2.imwrite(str(root / f"ann/{i}.png"), mask.astype(np.uint8))
        load = dict(type="LoadImageFromFile", color_type="unchanged")
        resize = dict(type="Resize", scale=(64, 48), keep_ratio=False)
        dataset = dict(
            type="BaseSegDataset", data_root=str(root), data_prefix=dict(img_path="img", seg_map_path="ann"),
            img_suffix=".png", seg_map_suffix=".png", metainfo=dict(classes=("a", "b"), palette=[[0] * 3, [255] * 3]),
            pipeline=[load, resize, dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
        )  # fmt: skip
        loader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dataset)
        backbone = dict(
            type="ResNet", depth=18, in_channels=channels, base_channels=8, stem_channels=8,
            num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,),
        )  # fmt: skip
        head = dict(type="FCNHead", in_channels=8, in_index=0, channels=8, num_convs=0, concat_input=False)
        preprocessor = dict(type="SegDataPreProcessor", mean=[0.4 * largest] * channels, std=[0.3 * largest] * channels)
        model = dict(
            type="EncoderDecoder", data_preprocessor=preprocessor, backbone=backbone,
            decode_head=dict(head, num_classes=2), test_cfg=dict(mode="whole"),
        )  # fmt: skip
        cfg = Config(
            dict(
                default_scope="mmseg", model=model, train_dataloader=loader, test_dataloader=loader,
                train_cfg=dict(type="IterBasedTrainLoop", max_iters=1), test_cfg=dict(type="TestLoop"),
                optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=1)),
                test_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
            )
        )  # fmt: skip
        self.root, self.config, self.checkpoint = root, str(root / "config.py"), root / "weights.pth"
        cfg.dump(self.config)
        model = build_untrained(cfg).eval()
        with torch.no_grad():  # both classes are to be found
            data = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)])
            zero, one = model(model.data_preprocessor(data)["inputs"])[0]
            model.decode_head.conv_seg.bias[1] -= (one - zero).median()
        save_checkpoint({"state_dict": model.state_dict()}, self.checkpoint)

    def evaluate(self, checkpoint: Path | None = None, **options: object) -> dict:
        log = str(self.root / "log")
        return evaluate(self.config, checkpoint or self.checkpoint, log, cfg_options=options, progress=True)

    def deploy(self, name: str, options: dict | None = None, runtime: str = "onnxruntime", **arguments: object):
        arguments |= dict(runtime=runtime, work_dir=str(self.root / "log"), cfg_options=options)
        return deploy_checkpoint(self.config, self.checkpoint, self.root / name, **arguments)

    def program(self, name: str) -> dict[str, np.ndarray]:
        """The classes that the program of a folder finds in each image."""
        names = runpy.run_path(str(self.root / name / "run.py"))
        names["predict_all"](names["Network"](self.root / name, 1), self.root / "img", self.root / f"{name}_out")
        files = sorted((self.root / f"{name}_out/maps").iterdir())
        return {file.stem: cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files}

    def inferred(self, options: dict) -> dict[str, np.ndarray]:
        """The classes that the framework finds."""
        out = self.root / "inferred"
        found = infer(self.config, self.checkpoint, self.root / "img", out, device="cpu", cfg_options=options).read()
        return {entry["image"]: cv2.imread(str(out / entry["sem_seg"]), cv2.IMREAD_UNCHANGED) for entry in found}


KINDS = {"grey, 16 bits": (1, np.uint16), "color, 16 bits": (3, np.uint16), "with alpha": (4, np.uint8)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_takes_the_images_of_the_dataset(kind, tmp_path):
    torch.manual_seed(1)
    segmentor = Segmentor(tmp_path, *KINDS[kind])
    # Padded by the preprocessor as well, and not by the pipeline.
    options = {"model.data_preprocessor.test_cfg": dict(size_divisor=64)}
    settings = segmentor.deploy("network", options, logits=True, verify_on="test").deployment.settings
    expected = settings["metrics"]["before"]
    assert settings["input"]["type"] == KINDS[kind][1].__name__ and settings["input"]["channels"] == KINDS[kind][0]
    assert (settings["input"]["height"], settings["input"]["width"]) == (64, 64)
    assert settings["metrics"]["after"] == pytest.approx(expected, abs=0.02)
    assert segmentor.evaluate(tmp_path / "network", **options) == pytest.approx(expected, abs=0.02)
    expected, actual = segmentor.inferred(options), segmentor.program("network")
    for name, labels in expected.items():
        assert actual[name].shape == labels.shape and len(np.unique(labels)) == 2
        assert (actual[name] == labels).mean() > 0.998


def test_images_are_fitted_to_the_size_of_the_graph(tmp_path):
    torch.manual_seed(1)
    segmentor = Segmentor(tmp_path, 3, np.uint8)
    smaller = segmentor.deploy("smaller", runtime="openvino", precision="int8", size=(32, 40), max_drop=None)
    assert smaller.proof.images == f"{NUMBER} images of the test set" and smaller.metrics is None
    assert "checked by predictions only" in " ".join(smaller.remarks)
    slide = {"model.test_cfg": dict(mode="slide", crop_size=(32, 48), stride=(16, 16))}
    sliding = segmentor.deploy("sliding", slide, runtime="openvino", logits=True).deployment.settings["input"]
    assert (sliding["height"], sliding["width"]) == (32, 48)  # of the window
    assert segmentor.evaluate(tmp_path / "sliding", **slide) == pytest.approx(segmentor.evaluate(**slide), abs=0.02)
    with pytest.raises(ValueError, match=r"is 64x48 after preprocessing, but the graph takes 48x32"):
        runpy.run_path(str(tmp_path / "sliding/run.py"))["Network"](tmp_path / "sliding", 1).predict(
            np.zeros((48, 64, 3), np.uint8)
        )
    ratio = {"test_dataloader.dataset.pipeline.1.keep_ratio": True}  # images of several sizes, which are padded
    free = segmentor.deploy("free", ratio, logits=True)
    given = free.deployment.settings["input"]
    assert (given["height"], given["width"]) == (None, None) and "any size; with --size" in " ".join(free.remarks)
    expected = segmentor.evaluate(**ratio)
    assert segmentor.evaluate(tmp_path / "free", **ratio) == pytest.approx(expected, abs=0.02)
    padded = segmentor.deploy("padded", ratio, runtime="openvino", precision="bfloat16", size=(48, 64))
    settings = padded.deployment.settings
    assert padded.proof.agreement > 0.98 and settings["preprocessing"][-1]["size"] == [64, 48]
    assert segmentor.evaluate(tmp_path / "padded", **ratio) == pytest.approx(expected, abs=3)
    shapes = [labels.shape for labels in segmentor.program("padded").values()]
    assert shapes == [(40 + 4 * i, 60) for i in range(NUMBER)]


def test_what_is_quantized_is_judged_by_the_metric_unasked(tmp_path, monkeypatch):
    segmentor = Segmentor(tmp_path, 3, np.uint8)
    report = segmentor.deploy("network", precision="int8")
    assert abs(report.metrics["before"]["mIoU"] - report.metrics["after"]["mIoU"]) < 0.5
    monkeypatch.setattr(GraphEvaluator, "__call__", lambda *_: {"mIoU": report.metrics["before"]["mIoU"] - 4.7})
    with pytest.raises(DeploymentError, match=r"mIoU drops by 4.70 points, allowed 0.5.*--max-drop leaves layers"):
        segmentor.deploy("other", precision="int8")


def test_a_test_set_without_metrics(tmp_path):
    segmentor = Segmentor(tmp_path, 3, np.uint8)
    options = {"test_evaluator.format_only": True, "test_evaluator.output_dir": str(tmp_path / "files")}
    for given in (dict(verify_on="test"), dict(max_drop=1.0, precision="int8")):
        with pytest.raises(MMRepMLPError, match="no metric that is a number"):
            segmentor.deploy("network", options, **given)
    report = segmentor.deploy("network", options, precision="int8")
    assert report.metrics is None and report.proof.agreement > 0.9
    nowhere = {f"{split}_dataloader.dataset.data_root": "nowhere" for split in ("train", "test")}
    report = segmentor.deploy("blind", nowhere)
    assert "no image of the test or training set" in report.remarks[0]
