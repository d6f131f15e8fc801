# SPDX-License-Identifier: Apache-2.0
"""Training for int8 on the real digits, from a config to an int8 graph."""

from collections import Counter

import onnx
import pytest
import torch

from mmrepmlp.apis import deploy_checkpoint, evaluate, reparameterize_checkpoint, train
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.verbs.deploy.folder import Deployment, DeploymentError
from mmrepmlp.verbs.deploy.images import dataset_images
from tests.fixtures import ROOT, dump_config

pytestmark = pytest.mark.slow
AWARE = ROOT / "configs/quantization/repmlpnet-mini_qat_1xb64_digits-64px.py"
RECOVER = ROOT / "configs/quantization/repmlpnet-mini_insert-bn_1xb64_digits-64px.py"


FEW = {"train_dataloader.dataset.indices": 256}


def state_of(checkpoint):
    return load_from_local(checkpoint)["state_dict"]


def test_trained_for_int8(trained, options, tmp_path, monkeypatch):
    settings = {**options, **FEW, "custom_hooks.0.begin": 1, "load_from": str(trained.checkpoint)}
    config = dump_config(AWARE, settings, tmp_path / "aware.py")
    train(config, work_dir=str(tmp_path))
    first, last = (state_of(tmp_path / f"epoch_{epoch}.pth") for epoch in (1, 2))
    assert not first["backbone.fake_quantization_enabled"] and last["backbone.fake_quantization_enabled"]
    statistics = [name for name in last if name.endswith("running_var") and ".quantizers." not in name]
    assert statistics and all(torch.equal(first[name], last[name]) for name in statistics)

    report = reparameterize_checkpoint(config, tmp_path / "epoch_2.pth", tmp_path / "deploy.pth", verify_on="test")
    assert all(difference.relative == 0 for difference in report.differences)
    (before, after) = report.metrics["accuracy/top1"]
    assert before == after == evaluate(report.config, work_dir=str(tmp_path))["accuracy/top1"]

    with pytest.raises(DeploymentError, match="trained with fake quantization, so its graph is int8"):
        deploy_checkpoint(config, tmp_path / "epoch_2.pth", tmp_path / "float32", work_dir=str(tmp_path))
    assert not (tmp_path / "float32").exists()
    monkeypatch.setattr("mmrepmlp.verbs.deploy.deploy.dataset_images", of_the_test_alone)
    forms = dict(openvino=(config, tmp_path / "epoch_2.pth"), onnxruntime=(report.config, report.checkpoint))
    for runtime, form in forms.items():
        arguments = dict(runtime=runtime, precision="int8", verify_on="test", work_dir=str(tmp_path))
        deployed = deploy_checkpoint(*form, tmp_path / runtime, **arguments)
        # What fake quantization showed; at most one image of 360 may hang on a tie of rounding.
        assert deployed.metrics["before"]["accuracy/top1"] == after
        assert round(3.6 * abs(deployed.metrics["after"]["accuracy/top1"] - after)) <= 1
        assert deployed.proof.agreement > 0.98 and deployed.deployment.megabytes < 1.4
    stored = Counter(node.op_type for node in onnx.load(tmp_path / "onnxruntime/model.onnx").graph.node)
    assert stored["QuantizeLinear"] == 29
    computed = Counter(
        str(node.get_rt_info()["primitiveType"].value).rpartition("_")[2]
        for node in deployed_graph(tmp_path / "openvino").get_ops()
        if str(node.get_rt_info()["layerType"].value) in ("Convolution", "FullyConnected")
    )
    assert computed["I8"] == 29  # each of its products and convolutions


def of_the_test_alone(cfg, split, number):
    assert split == "test", "trained ranges need no images to calibrate with"
    return dataset_images(cfg, split, number)


def deployed_graph(folder):
    return Deployment.read(folder).load().compiled.get_runtime_model()


def test_training_that_is_resumed_goes_on_rounding(options, tmp_path):
    settings = {**options, **FEW, "custom_hooks.0.begin": 0}
    train(dump_config(AWARE, {**settings, "train_cfg.max_epochs": 1}, tmp_path / "aware.py"), work_dir=str(tmp_path))
    resumed = dump_config(AWARE, settings, tmp_path / "resumed.py")
    train(resumed, work_dir=str(tmp_path), resume="auto")
    before, after = (state_of(tmp_path / f"epoch_{epoch}.pth") for epoch in (1, 2))
    assert after["backbone.fake_quantization_enabled"]
    name = "backbone.quantizers.patch_embed-projection.scale"
    assert after[name] == pytest.approx(before[name], rel=0.05)  # the same images, not a range begun anew


def test_recovered_by_fine_tuning_with_norms_behind_fc3(trained, config, options, tmp_path):
    deployed = reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "deploy.pth")
    recover = dump_config(
        RECOVER,
        {
            **options,
            **FEW,
            "custom_hooks.1.begin": 1,
            "load_from": str(deployed.checkpoint),
        },
        tmp_path / "recover.py",
    )
    train(recover, work_dir=str(tmp_path))
    state = state_of(tmp_path / "epoch_1.pth")
    norms = [name for name in state if name.endswith(".fc3_bn.running_mean")]
    assert len(norms) == 5 and all(state[name].abs().max() > 0 for name in norms)
    (log,) = tmp_path.glob("*/*.log")
    assert "statistics of 256 training images" in log.read_text()
    report = reparameterize_checkpoint(recover, tmp_path / "epoch_2.pth", tmp_path / "again.pth", verify_on="test")
    assert report.metrics["accuracy/top1"][0] == report.metrics["accuracy/top1"][1]
    assert not [name for name in state_of(report.checkpoint) if ".fc3_bn." in name]
