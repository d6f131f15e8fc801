# SPDX-License-Identifier: Apache-2.0
"""Compressed networks, of which one is a PrunedModel and one has arguments, where all others are used as well."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmrepmlp.apis import deploy_checkpoint, reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local, save_checkpoint
from mmrepmlp.compression import find_groups
from mmrepmlp.compression.reduce import zero_filters
from mmrepmlp.verbs.deploy.folder import Deployment
from mmrepmlp.verbs.model import build_model, build_untrained, count_macs
from mmrepmlp.verbs.reparameterize.report import ConversionReport
from tests.compression.test_groups import REPMLPNET, RESNET
from tests.helpers import needs_export, randomize, relative_error

NORM = dict(mean=[120.0] * 3, std=[60.0] * 3)
CLASSES = dict(classes=("a", "b", "c"), palette=[[0] * 3, [90] * 3, [255] * 3])
FEATURES = [8, 16, 32, 64]


def classifier(backbone: dict) -> dict:
    head = dict(type="LinearClsHead", num_classes=3, in_channels=64)
    preprocessor = dict(type="ClsDataPreprocessor", num_classes=3, to_rgb=True, **NORM)
    neck = dict(type="GlobalAveragePooling")
    return dict(type="ImageClassifier", data_preprocessor=preprocessor, backbone=backbone, neck=neck, head=head)


def segmentor(backbone: dict) -> dict:
    head = dict(
        type="FCNHead", in_channels=64, channels=16, num_convs=2, in_index=3, num_classes=3, norm_cfg=dict(type="BN")
    )
    preprocessor = dict(type="SegDataPreProcessor", bgr_to_rgb=True, **NORM)
    backbone = dict(backbone, out_indices=(0, 1, 2, 3))
    test_cfg = dict(mode="whole")
    return dict(
        type="EncoderDecoder", data_preprocessor=preprocessor, backbone=backbone, decode_head=head, test_cfg=test_cfg
    )


def detector(backbone: dict) -> dict:
    anchors = dict(
        type="AnchorGenerator", octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=[4, 8, 16, 32]
    )
    head = dict(
        type="RetinaHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=2, anchor_generator=anchors
    )
    preprocessor = dict(type="DetDataPreprocessor", bgr_to_rgb=True, pad_size_divisor=32, **NORM)
    return dict(
        type="RetinaNet",
        data_preprocessor=preprocessor,
        backbone=dict(backbone, out_indices=(0, 1, 2, 3)),
        neck=dict(type="FPN", in_channels=FEATURES, out_channels=16, num_outs=4),
        bbox_head=dict(head, anchor_generator=anchors),
        test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
    )


LOAD = dict(type="LoadImageFromFile")
META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
PIPELINES = dict(
    mmpretrain=[LOAD, dict(type="PackInputs")],
    mmseg=[LOAD, dict(type="PackSegInputs")],
    mmdet=[LOAD, dict(type="Resize", scale=(64, 64)), dict(type="PackDetInputs", meta_keys=META)],
)
DATASETS = dict(mmpretrain="CustomDataset", mmseg="BaseSegDataset", mmdet="CocoDataset")
VISUALIZERS = dict(mmpretrain="UniversalVisualizer", mmseg="SegLocalVisualizer", mmdet="DetLocalVisualizer")
NETWORKS = dict(
    resnet=("mmpretrain", classifier(RESNET)),
    repmlpnet=("mmpretrain", classifier(REPMLPNET)),
    segmentor=("mmseg", segmentor(RESNET)),
    detector=("mmdet", detector(REPMLPNET)),
)


@dataclass
class Small:
    """A compressed network."""

    scope: str
    config: Path
    checkpoint: Path
    images: list[Path]

    def model(self) -> nn.Module:
        return build_model(Config.fromfile(self.config), load_from_local(self.checkpoint)["state_dict"])

    def predict(self, image: Path) -> object:
        """What the model itself predicts."""
        with DefaultScope.overwrite_default_scope(self.scope), torch.no_grad():
            data = Compose(PIPELINES[self.scope])(dict(img_path=str(image), img_id=0))
            return self.model().test_step(pseudo_collate([data]))[0]


def convert(network: nn.Module, config: Path) -> ConversionReport:
    """Remove every second filter of a network, as AOFP leaves it."""
    groups, masks = find_groups(network), {}
    for layer, group in groups.items():
        zero_filters(network, group, range(1, group.channels, 2))
        masks[layer] = [i % 2 for i in range(group.channels)]
    meta, kept = dict(dataset_meta=CLASSES), {"AOFPHook": dict(masks=masks)}
    checkpoint = config.with_suffix(".pth")
    save_checkpoint({"meta": meta, "state_dict": network.state_dict(), "compression": kept}, checkpoint)
    report = reparameterize_checkpoint(config, checkpoint, config.with_name(f"small_{config.stem}.pth"))
    assert all(after == before // 2 for before, after in report.channels.values())
    return report


@pytest.fixture(scope="module")
def compress(tmp_path_factory) -> Callable[[str], Small]:
    """A network with random weights and half of the filters, converted once."""

    @cache
    def build(name: str) -> Small:
        scope, model = NETWORKS[name]
        folder, random = tmp_path_factory.mktemp(name), np.random.RandomState(0)
        images = [folder / f"images/a/{i}.png" for i in range(8)]
        images[0].parent.mkdir(parents=True)
        for image in images:
            pixels = random.rand(4, 4, 3) * 255
            cv2.imwrite(str(image), cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 255))
        dataset = dict(type=DATASETS[scope], data_root=str(folder / "images"), pipeline=PIPELINES[scope])
        loader = dict(batch_size=1, num_workers=0, dataset=dataset, sampler=dict(type="DefaultSampler", shuffle=False))
        visualizer = dict(type=VISUALIZERS[scope], vis_backends=[])
        settings = dict(train_dataloader=loader, test_dataloader=loader, visualizer=visualizer, default_scope=scope)
        cfg = Config(dict(model=model, **settings))
        cfg.dump(folder / "large.py")
        torch.manual_seed(0)
        network = randomize(build_untrained(cfg), torch.Generator().manual_seed(0), 0.1).eval()
        for layer in ("head.fc", "decode_head.conv_seg"):  # predictions are to be clear
            if layer in dict(network.named_modules()):
                network.get_submodule(layer).weight.data *= 10
        report = convert(network, folder / "large.py")
        return Small(scope, report.config, report.checkpoint, images)

    return build


DEPLOYED = [("onnxruntime", "float32", 1e-6), ("onnxruntime", "int8", 0.08), ("openvino", "int8", 0.08)]


@needs_export
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "repmlpnet"])
@pytest.mark.parametrize("runtime, precision, tolerance", DEPLOYED)
def test_deployed_networks_predict_what_the_model_does(name, runtime, precision, tolerance, compress, tmp_path):
    small = compress(name)
    options = dict(runtime=runtime, precision=precision, images=8, size=(64, 64), dynamic=())
    deploy_checkpoint(small.config, small.checkpoint, tmp_path / "network", work_dir=str(tmp_path), **options)
    graph = Deployment.read(tmp_path / "network").load()
    for image in small.images[:3]:
        expected = small.predict(image).pred_score
        (scores,) = graph(torch.from_numpy(cv2.imread(str(image)))[None])
        assert relative_error(scores[0], expected) < tolerance
        assert precision == "float32" or relative_error(scores[0], expected) > 1e-5  # it is rounded


@pytest.mark.parametrize("name", NETWORKS)
def test_the_inferencers_of_the_frameworks_predict_what_the_model_does(name, compress):
    small = compress(name)
    image, arguments = small.images[0], (str(small.config), str(small.checkpoint))
    expected = small.predict(image)
    if small.scope == "mmpretrain":
        from mmpretrain import ImageClassificationInferencer

        (found,) = ImageClassificationInferencer(*arguments, device="cpu")(str(image))
        assert np.array_equal(found["pred_scores"], expected.pred_score.numpy())
    elif small.scope == "mmseg":
        from mmseg.apis import MMSegInferencer

        found = MMSegInferencer(*arguments, device="cpu")(str(image), return_datasamples=True)
        assert torch.equal(found.seg_logits.data, expected.seg_logits.data)
        assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)
    else:
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(*arguments, device="cpu", show_progress=False)
        (found,) = inferencer(str(image), no_save_vis=True, pred_score_thr=0)["predictions"]
        instances = expected.pred_instances
        assert len(found["scores"]) > 5
        for kind, values in dict(bboxes=instances.bboxes, scores=instances.scores, labels=instances.labels).items():
            assert found[kind] == values.tolist()


def test_the_frameworks_load_them(compress):
    from mmdet.apis import init_detector
    from mmpretrain import get_model
    from mmseg.apis import init_model

    for name, load in dict(resnet=get_model, segmentor=init_model, detector=init_detector).items():
        small = compress(name)
        model = load(str(small.config), str(small.checkpoint), device="cpu")
        torch.testing.assert_close(model.state_dict(), small.model().state_dict(), rtol=0, atol=0)


def test_a_compressed_network_is_compressed_further(compress, tmp_path):
    small = compress("resnet")
    Config.fromfile(small.config).dump(tmp_path / "small.py")
    report = convert(small.model(), tmp_path / "small.py")
    again = build_model(Config.fromfile(report.config), load_from_local(report.checkpoint)["state_dict"])
    assert count_macs(again) == report.macs[1] < report.macs[0] == count_macs(small.model())


class TwoBranches(BaseModule):
    """A layer whose deploy form has other names and no argument."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = torch.nn.Conv2d(8, 6, 1), torch.nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if hasattr(self, "fused") else self.one(x) + self.three(x)

    def switch_to_deploy(self) -> None:
        """Fuse both branches."""
        self.fused = torch.nn.Conv2d(self.one.in_channels, 6, 3, padding=1)
        self.fused.weight.data = self.three.weight.data + F.pad(self.one.weight.data, (1, 1, 1, 1))
        self.fused.bias.data = self.three.bias.data + self.one.bias.data
        del self.one, self.three


@MODELS.register_module(force=True)
class TwoBranchedBackbone(BaseModule):
    img_size = 64

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.conv, self.branches = torch.nn.Conv2d(3, 8, 3, stride=4), TwoBranches()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.branches(F.relu(self.conv(x))),)


def test_layers_that_a_conversion_renames_are_narrowed_before_it(tmp_path):
    model = classifier(dict(type="mmengine.TwoBranchedBackbone"))
    cfg = Config(dict(model=model, default_scope="mmpretrain"))
    cfg.model.head.in_channels = 6
    cfg.dump(tmp_path / "large.py")
    report = convert(build_untrained(cfg).eval(), tmp_path / "large.py")
    small = build_model(Config.fromfile(report.config), load_from_local(report.checkpoint)["state_dict"])
    assert list(report.channels) == ["backbone.conv"] and small.backbone.branches.fused.in_channels == 4
