# SPDX-License-Identifier: Apache-2.0
import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from mmrepmlp.apis import evaluate
from mmrepmlp.checkpoint import load_from_local, unwrap
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.model import build_model, build_untrained
from mmrepmlp.verbs.runner import build_runner
from mmrepmlp.verbs.test.tta import apply_tta


def test_annotations_are_not_flipped():
    steps = [dict(type="LoadImageFromFile"), dict(type="Resize"), dict(type="mmdet.LoadAnnotations")]
    pack = dict(type="PackDetInputs", meta_keys=("img_id", "flip"))
    dataset = dict(type="RepeatDataset", dataset=dict(pipeline=[*steps, pack]))
    cfg = Config(dict(default_scope="mmdet", model=dict(type="FCOS"), test_dataloader=dict(dataset=dataset)))
    apply_tta(cfg)
    *before, augment = cfg.test_dataloader.dataset.dataset.pipeline
    assert [step.type for step in before] == ["LoadImageFromFile", "Resize"]
    assert [[step.type for step in steps] for steps in augment.transforms] == [
        ["RandomFlip", "RandomFlip"],
        ["mmdet.LoadAnnotations"],
        ["PackDetInputs"],
    ]
    assert augment.transforms[2][0].meta_keys == ("img_id", "flip", "flip_direction")
    assert (cfg.model.type, cfg.model.module.type) == ("DetTTAModel", "FCOS")


def test_a_config_may_bring_its_own():
    own = dict(tta_model=dict(type="Own"), tta_pipeline=[dict(type="Mine")])
    cfg = Config(dict(model=dict(type="X"), test_dataloader=dict(dataset=dict(pipeline=[])), **own))
    apply_tta(cfg)
    assert cfg.model.type == "Own" and cfg.test_dataloader.dataset.pipeline[0].type == "Mine"
    cfg.model, cfg.tta_model.module = dict(type="X"), dict(type="Other")  # as such a test run writes it into its config
    apply_tta(cfg)
    assert cfg.model.module.type == "X"
    del cfg._cfg_dict["tta_model"]
    with pytest.raises(MMRepMLPError, match="default_scope=None has no default model.*tta_model and tta_pipeline"):
        apply_tta(cfg)


@pytest.mark.parametrize("own", [True, False])
def test_images_are_normalized_as_without_augmentation(config, tmp_path, own):
    cfg = load_config(config, work_dir=str(tmp_path))
    cfg.data_preprocessor.mean = [7.0] * 3
    if own:
        cfg.model.data_preprocessor = dict(type="ClsDataPreprocessor", mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    expected = build_untrained(cfg).data_preprocessor
    apply_tta(cfg)
    preprocessor = build_runner(cfg).model.module.data_preprocessor
    assert torch.equal(preprocessor.mean, expected.mean) and torch.equal(preprocessor.std, expected.std)
    assert preprocessor.mean[0, 0, 0] == (1 if own else 7)


@pytest.mark.parametrize("own", [None, [dict(type="Mine")]])
def test_each_data_set_in_a_wrapper_is_augmented(own):
    parts = [dict(type="A", pipeline=[dict(type="Load"), dict(type=f"Pack{i}")]) for i in range(2)]
    dataset = dict(type="ConcatDataset", datasets=[parts[0], dict(type="RepeatDataset", dataset=parts[1])])
    cfg = Config(dict(default_scope="mmseg", model=dict(type="X"), test_dataloader=dict(dataset=dataset)))
    cfg.tta_pipeline = own
    apply_tta(cfg)
    first, second = cfg.test_dataloader.dataset.datasets
    assert "pipeline" not in cfg.test_dataloader.dataset and "pipeline" not in second
    for i, pipeline in enumerate((first.pipeline, second.dataset.pipeline)):
        assert own or pipeline[1].transforms[1][0].type == f"Pack{i}"
        assert [step.type for step in pipeline] == (["Mine"] if own else ["Load", "TestTimeAug"])


def test_images_are_flipped_before_the_last_step_whatever_it_is():
    dataset = dict(type="A", pipeline=[dict(type="Load"), dict(type="Collect")])
    cfg = Config(dict(default_scope="mmseg", model=dict(type="X"), test_dataloader=dict(dataset=dataset)))
    apply_tta(cfg)
    assert [[step.type for step in steps] for steps in cfg.test_dataloader.dataset.pipeline[1].transforms] == [
        ["RandomFlip", "RandomFlip"],
        ["Collect"],
    ]
    del cfg.test_dataloader.dataset["pipeline"]
    with pytest.raises(MMRepMLPError, match="A has no pipeline to add flips to. Set tta_pipeline"):
        apply_tta(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("deploy", [False, True])
def test_scores_are_the_means_of_image_and_mirror_image(trained, config, tmp_path, deploy):
    out = tmp_path / "predictions.pkl"
    few = {"test_dataloader.dataset.indices": list(range(0, 360, 45))}
    evaluate(config, trained.checkpoint, str(tmp_path), str(out), deploy, tta=True, cfg_options=few)
    cfg = Config.fromfile(config)
    model = build_model(cfg, unwrap(load_from_local(trained.checkpoint)))
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    for sample in mmengine.load(out):
        data = pipeline(dict(img_path=sample["img_path"], gt_label=0))
        images = model.data_preprocessor(dict(inputs=torch.stack([data["inputs"], data["inputs"].flip(2)])))["inputs"]
        with torch.no_grad():
            scores = model(images).softmax(1)
        torch.testing.assert_close(sample["pred_score"], scores.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_segmentors_and_detectors(short_run, tmp_path):
    metrics = evaluate(short_run.config, short_run.checkpoint, str(tmp_path), tta=True)
    boxes = {f"coco/bbox_mAP{kind}" for kind in ("", "_50", "_75", "_s", "_m", "_l")}
    assert metrics.keys() == dict(seg={"aAcc", "mIoU", "mAcc"}, det=boxes)[short_run.task]
