# SPDX-License-Identifier: Apache-2.0
import hashlib
import io
import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mmrepmlp.apis import ConversionError, evaluate, reparameterize_checkpoint, train
from mmrepmlp.checkpoint import CheckpointError, load_from_local, save_checkpoint, unwrap, writing
from mmrepmlp.verbs.config import read_config
from mmrepmlp.verbs.model import build_model, random_images
from mmrepmlp.verbs.reparameterize import reparameterize as module
from mmrepmlp.verbs.reparameterize.test_set import Agreement
from tests.fixtures import CONFIG, ROOT
from tests.helpers import render

pytestmark = pytest.mark.slow


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "deploy.pth"


@pytest.fixture
def original(trained, config):
    return build_model(Config.fromfile(config), unwrap(load_from_local(trained.checkpoint)))


def build_from(config):
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).eval()


def test_checkpoint_config_and_report_stand_alone(trained, original, out):
    report = reparameterize_checkpoint(CONFIG, trained.checkpoint, out)
    digest = hashlib.sha256(report.checkpoint.read_bytes()).hexdigest()[:8]
    assert sorted(os.listdir(out.parent)) == [f"deploy-{digest}.json", f"deploy-{digest}.pth", "deploy.py"]
    deployed = build_from(report.config)
    checkpoint = load_from_local(read_config(report.config).load_from)
    deployed.load_state_dict(checkpoint["state_dict"], strict=True)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), original(images), rtol=1e-5, atol=1e-5)
    assert deployed.backbone.deploy
    assert checkpoint.keys() == {"meta", "state_dict"}
    assert checkpoint["state_dict"]._metadata["backbone"]["tiles"] == [[16, 16], [8, 8], [4, 4], [2, 2]]
    meta = checkpoint["meta"]
    assert meta["dataset_meta"] and meta["mmrepmlp_version"] and meta["epoch"] == 2 and "deploy=True" in meta["cfg"]

    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (original, deployed))
    assert report.converted == ["backbone"] and not report.changed
    assert [(d.output, d.dtype, d.required) for d in report.differences] == [
        ("backbone.0", torch.float64, True),
        ("backbone.0", torch.float32, True),
        ("whole model, output", torch.float32, False),
    ]
    kept = json.loads(report.checkpoint.with_suffix(".json").read_text())
    assert kept["parameters"] == list(report.parameters) and kept["macs"] == list(report.macs)
    assert [d["relative"] for d in kept["differences"]] == [d.relative for d in report.differences]
    assert all(d.relative < (1e-10 if d.dtype is torch.float64 else 1e-5) for d in report.differences)
    table = render(report.table()).replace("\n", "")
    assert str(report.checkpoint) in table and f"{report.parameters[1]:,}" in table


def test_the_config_is_enough_to_test(trained, config, out):
    few = {"test_dataloader.dataset.indices": list(range(0, 360, 9))}
    report = reparameterize_checkpoint(config, trained.checkpoint, out, verify_on="test", cfg_options=few)
    ((name, (before, after)),) = report.metrics.items()
    assert name == "accuracy/top1" and before == after > 10
    assert evaluate(report.config, work_dir=str(out.parent / "log")) == {name: pytest.approx(after, abs=1e-9)}
    assert report.same_predictions == 1
    assert name in render(report.table()) and "same predictions" in render(report.table())
    with pytest.raises(ValueError, match="No checkpoint is given"):
        evaluate(config, work_dir=str(out.parent / "log"), cfg_options=trained.options)


def test_the_test_set_reaches_what_random_images_do_not(trained, config, out, monkeypatch):
    monkeypatch.setattr(module.Verification, "run_on_random_images", lambda self: None)
    message = r"on random images .*backbone: no forward pass reached it.*Nothing was written.*--verify-on test"
    assert_refused(ConversionError, message, out, config, trained.checkpoint)
    few = {"test_dataloader.dataset.indices": 20}
    report = reparameterize_checkpoint(config, trained.checkpoint, out, verify_on="test", cfg_options=few)
    assert [(d.output, d.dtype) for d in report.differences] == [
        ("backbone.0", torch.float64),
        ("backbone.0", torch.float32),
    ]
    assert report.same_predictions == 1 and "cannot be called" in render(report.table())


def test_the_same_conversion_has_the_same_name(trained, config, out):
    first = reparameterize_checkpoint(config, trained.checkpoint, out)
    content = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    second = reparameterize_checkpoint(config, trained.checkpoint, out, overwrite=True)
    assert first.checkpoint == second.checkpoint
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == content


def test_files_of_an_earlier_conversion_are_kept_unless_told_otherwise(trained, config, out):
    for path in (out, out.with_suffix(".py")):
        path.write_text("precious")
        with pytest.raises(FileExistsError, match=f"{path} already exists; choose another path.*--overwrite"):
            reparameterize_checkpoint(config, trained.checkpoint, out)
        assert path.read_text() == "precious" and len(os.listdir(out.parent)) == 1
        path.unlink()
    names = ["deploy.pth", "deploy-01234567.pth", "deploy-01234567.json", "deploy-best.pth", "other-01234567.pth"]
    for name in names:
        (out.parent / name).write_text("stale")
    report = reparameterize_checkpoint(config, trained.checkpoint, out, overwrite=True)
    ours = {report.checkpoint.name, report.checkpoint.with_suffix(".json").name, "deploy.py"}
    assert set(os.listdir(out.parent)) == ours | set(names[3:])


def test_check_reports_and_writes_nothing(trained, config, out):
    out.write_text("precious")
    report = reparameterize_checkpoint(config, trained.checkpoint, out, check=True)
    assert report.checkpoint is None and all(d.accepted for d in report.differences)
    assert str(trained.checkpoint) in render(report.table()).replace("\n", "")
    assert os.listdir(out.parent) == ["deploy.pth"] and out.read_text() == "precious"


def test_training_state_on_request(trained, config, out):
    report = reparameterize_checkpoint(config, trained.checkpoint, out, keep_training_state=True)
    kept = load_from_local(report.checkpoint)
    assert kept.keys() == {"meta", "state_dict", "optimizer", "param_schedulers", "message_hub"}


def test_safetensors_in_and_out(trained, config, original, out, tmp_path):
    source = load_from_local(trained.checkpoint)
    save_checkpoint({key: source[key] for key in ("meta", "state_dict")}, tmp_path / "trained.safetensors")
    report = reparameterize_checkpoint(config, tmp_path / "trained.safetensors", out.with_suffix(".safetensors"))
    assert report.checkpoint.suffix == ".safetensors"
    loaded = load_from_local(report.checkpoint)
    assert loaded["meta"]["dataset_meta"]["classes"] == list(source["meta"]["dataset_meta"]["classes"])
    deployed = build_from(report.config)
    deployed.load_state_dict(loaded["state_dict"], strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), original(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source, dtype, expected", [(None, "float16", "float16"), ("bfloat16", None, "bfloat16")])
def test_half_precision_is_converted_in_float32_and_cast_after(trained, config, out, tmp_path, source, dtype, expected):
    state = unwrap(load_from_local(trained.checkpoint))
    if source:
        state = {k: v.to(getattr(torch, source)) if v.is_floating_point() else v for k, v in state.items()}
    save_checkpoint({"state_dict": state}, tmp_path / "source.pth")
    half = load_from_local(reparameterize_checkpoint(config, tmp_path / "source.pth", out, dtype=dtype).checkpoint)[
        "state_dict"
    ]
    single = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    save_checkpoint({"state_dict": single}, tmp_path / "single.pth")
    full = load_from_local(reparameterize_checkpoint(config, tmp_path / "single.pth", out, overwrite=True).checkpoint)
    for name, value in full["state_dict"].items():
        assert torch.equal(half[name], value.to(getattr(torch, expected)))


@pytest.mark.parametrize(
    "dtype, suffix", [("float32", ".safetensors"), ("float16", ".pth"), ("bfloat16", ".safetensors")]
)
def test_the_error_that_is_reported_is_that_of_the_file(trained, config, original, out, dtype, suffix):
    report = reparameterize_checkpoint(config, trained.checkpoint, out.with_suffix(suffix), dtype=dtype)
    exact, written = (d for d in report.differences if d.output == "backbone.0")
    assert (exact.dtype, written.dtype) == (torch.float64, getattr(torch, dtype)) and written.accepted
    deployed = build_model(Config.fromfile(report.config), unwrap(load_from_local(report.checkpoint)))
    images = random_images(original, 2).float()
    with torch.no_grad():
        (expected,), (actual,) = original.backbone(images), deployed.backbone(images)
    measured = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert written.relative == pytest.approx(measured, rel=1e-3, abs=1e-7)
    assert dtype == "float32" or measured > 1e-5  # a file in half precision is further away than its conversion


def test_a_fault_of_the_cast_or_of_the_disk_is_seen(trained, config, out, monkeypatch):
    def damage(state, dtype):
        return {**state, "head.fc.bias": state["head.fc.bias"] + 0.1}

    monkeypatch.setattr(module, "cast", damage)
    message = "head.fc.bias differs, although its module is not converted"
    for check in (False, True):
        assert_refused(ConversionError, message, out, config, trained.checkpoint, check=check)


def test_averaged_weights_on_request(trained, config, out, tmp_path):
    state = unwrap(load_from_local(trained.checkpoint))
    averaged = {name: value + 0.5 if name == "head.fc.bias" else value for name, value in state.items()}
    layouts = [
        {"model": state, "ema": averaged},
        {"state_dict": averaged, "ema_state_dict": {f"module.{name}": value for name, value in state.items()}},
    ]
    for content in layouts:
        save_checkpoint(content, tmp_path / "source.pth")
        report = reparameterize_checkpoint(config, tmp_path / "source.pth", out, ema=True, overwrite=True)
        bias = load_from_local(report.checkpoint)["state_dict"]["head.fc.bias"]
        torch.testing.assert_close(bias, averaged["head.fc.bias"], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="holds no averaged weights: its entries are meta, state_dict"):
        reparameterize_checkpoint(config, trained.checkpoint, out, ema=True, overwrite=True)


def test_averaged_weights_of_a_training_with_mmengines_hook(config, out, tmp_path):
    hooks = [dict(type="EMAHook", momentum=0.5)]
    short = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 2, "custom_hooks": hooks}
    short["train_dataloader.dataset.indices"] = 128
    runner = train(config, str(tmp_path / "run"), cfg_options=short)
    averaged = next(hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))
    assert not torch.equal(averaged.head.fc.bias, runner.model.head.fc.bias)
    report = reparameterize_checkpoint(config, tmp_path / "run/epoch_1.pth", out, ema=True)
    bias = load_from_local(report.checkpoint)["state_dict"]["head.fc.bias"]
    assert torch.equal(bias, averaged.head.fc.bias)


def assert_refused(error, message, out, *arguments, **options):
    with pytest.raises(error, match=message):
        reparameterize_checkpoint(*arguments, out, **options)
    assert not os.listdir(out.parent)


def test_what_is_converted_already_says_so(trained, config, out, tmp_path):
    report = reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "first.pth")
    assert_refused(ConversionError, "already in deploy form", out, report.config, report.checkpoint)
    assert_refused(ConversionError, f"{report.checkpoint} is already in deploy form", out, config, report.checkpoint)


def test_wrong_checkpoints_leave_nothing_behind(trained, config, out, tmp_path):
    other = ROOT / "configs/repmlpnet/repmlpnet-t224_8xb32_in1k.py"
    assert_refused(ValueError, r"another RepMLPNet: .*depths \[1, 1, 2, 1\]", out, other, trained.checkpoint)

    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(trained.checkpoint.read_bytes()[:100_000])
    assert_refused(CheckpointError, "damaged", out, config, truncated)

    headless = unwrap(load_from_local(trained.checkpoint))
    del headless["head.fc.bias"]
    save_checkpoint(headless, tmp_path / "headless.pth")
    assert_refused(ValueError, "does not fit.*missing: head.fc.bias", out, config, tmp_path / "headless.pth")


def test_a_conversion_that_is_not_exact_is_refused(trained, config, out, monkeypatch):
    def bend(model):
        model.backbone.switch_to_deploy()
        model.backbone.final_norm.bias.data += 1
        return model

    assert_refused(
        ConversionError, "rounding to float32; --tolerance", out, config, trained.checkpoint, tolerance=1e-12
    )
    monkeypatch.setattr(module, "switch_to_deploy", bend)
    message = r"backbone\.0 in float64: .* allowed 1e-10; .*backbone\.0 in float32: .* relative, allowed 1e-05.*Nothing"
    assert_refused(ConversionError, message, out, config, trained.checkpoint)


def test_metrics_that_differ_are_refused(trained, config, out, monkeypatch):
    agreement = Agreement({"accuracy/top1": (90.0, 90.02)}, same=1, total=1)
    monkeypatch.setattr(module, "compare_on_test_set", lambda *arguments: agreement)
    assert_refused(
        ConversionError, "accuracy/top1: 90.0 and 90.02.* Nothing", out, config, trained.checkpoint, verify_on="test"
    )


def test_nothing_to_convert_says_so(trained, out, tmp_path):
    (tmp_path / "plain.py").write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=10))\n"
    )
    model = MODELS.build(
        dict(type="mmpretrain.ImageClassifier", backbone=dict(type="mmpretrain.LeNet5", num_classes=10))
    )
    save_checkpoint({"state_dict": model.state_dict()}, tmp_path / "plain.pth")
    assert_refused(ConversionError, "nothing to convert: no part", out, tmp_path / "plain.py", tmp_path / "plain.pth")


def test_a_full_disk_leaves_what_was_there_before(trained, config, out, tmp_path, monkeypatch):
    reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "earlier/deploy.pth")
    before = {path.name: path.read_bytes() for path in (tmp_path / "earlier").iterdir()}
    commit = writing.commit

    def fail(failing, temporary, path):
        if re.sub("-[0-9a-f]{8}", "-xxxxxxxx", path.name).replace("-xxxxxxxx.pth", ".pth") == failing:
            raise OSError(28, "No space left on device")
        commit(temporary, path)

    for name in ("deploy.pth", "deploy-xxxxxxxx.json", "deploy.py"):
        monkeypatch.setattr(writing, "commit", partial(fail, name))
        assert_refused(OSError, "No space", out, config, trained.checkpoint)
        with pytest.raises(OSError, match="No space"):  # another precision, so another file
            earlier = dict(overwrite=True, dtype="float16")
            reparameterize_checkpoint(config, trained.checkpoint, tmp_path / "earlier/deploy.pth", **earlier)
        assert {path.name: path.read_bytes() for path in (tmp_path / "earlier").iterdir()} == before


@pytest.mark.parametrize("folder", ["it's", """back\\slash/{{ fileDirname }}/both'"kinds/\u6570\u5b57"""])
def test_the_written_config_finds_its_weights_wherever_it_lies(trained, config, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")  # of another locale
    options = {"author": "\u6570\u5b57"}
    report = reparameterize_checkpoint(
        config, trained.checkpoint, tmp_path / folder / "deploy.pth", cfg_options=options
    )
    cfg = read_config(report.config)
    assert cfg.author == options["author"] and Path(cfg.load_from) == report.checkpoint and report.checkpoint.is_file()
    build_model(cfg, load_from_local(cfg.load_from)["state_dict"])


def test_a_config_that_no_text_holds_is_refused(trained, config, out, tmp_path):
    text = f"_base_ = {str(config)!r}\nlimit = float('inf')\n"
    (tmp_path / "config.py").write_text(text)
    message = "cannot be written as text: NameError: name 'inf' is not defined.*Nothing was written"
    assert_refused(ConversionError, message, out, tmp_path / "config.py", trained.checkpoint)
