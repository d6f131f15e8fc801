# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mmrepmlp.apis import ConversionError, reparameterize_checkpoint
from mmrepmlp.apis import reparameterize as module
from mmrepmlp.apis.reparameterize import build_model
from mmrepmlp.checkpoint import CheckpointError, load_from_local, save_checkpoint, unwrap
from tests.apis.conftest import CONFIG, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "deploy.pth"


def test_checkpoint_and_config_stand_alone(trained, out):
    report = reparameterize_checkpoint(CONFIG, trained.checkpoint, out)
    assert sorted(os.listdir(out.parent)) == ["deploy.pth", "deploy.py"]
    cfg = Config.fromfile(report.config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        deployed = MODELS.build(cfg.model).eval()
    deployed.load_state_dict(load_from_local(out)["state_dict"], strict=True)
    original = build_model(Config.fromfile(CONFIG), unwrap(load_from_local(trained.checkpoint)))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), original(images), rtol=1e-5, atol=1e-5)
    assert deployed.backbone.deploy
    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (original, deployed))
    assert [d.relative <= d.tolerance for d in report.differences] == [True, True]
    meta = load_from_local(out)["meta"]
    assert meta["dataset_meta"] and meta["mmrepmlp_version"] and "deploy=True" in meta["cfg"]


def test_existing_files_are_kept_unless_told_otherwise(trained, out):
    for path in (out, out.with_suffix(".py")):
        path.write_text("precious")
        with pytest.raises(FileExistsError, match=f"{path} exists and is kept.*--overwrite"):
            reparameterize_checkpoint(CONFIG, trained.checkpoint, out)
        assert path.read_text() == "precious" and len(os.listdir(out.parent)) == 1
        path.unlink()
    out.write_text("stale")
    reparameterize_checkpoint(CONFIG, trained.checkpoint, out, overwrite=True)
    assert load_from_local(out)["state_dict"]


def assert_refused(error, message, out, *arguments, **options):
    with pytest.raises(error, match=message):
        reparameterize_checkpoint(*arguments, out, **options)
    assert not os.listdir(out.parent)


def test_what_is_converted_already_says_so(trained, out, tmp_path):
    report = reparameterize_checkpoint(CONFIG, trained.checkpoint, tmp_path / "first.pth")
    assert_refused(ConversionError, "deploy form already", out, report.config, report.checkpoint)
    assert_refused(ValueError, "in deploy form, .*deploy=True", out, CONFIG, report.checkpoint)


def test_wrong_checkpoints_leave_nothing_behind(trained, out, tmp_path):
    other = ROOT / "configs/repmlpnet/repmlpnet-t224_8xb32_in1k.py"
    assert_refused(ValueError, r"another RepMLPNet: .*depths \[1, 1, 2, 1\]", out, other, trained.checkpoint)

    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(trained.checkpoint.read_bytes()[:100_000])
    assert_refused(CheckpointError, "damaged", out, CONFIG, truncated)

    headless = unwrap(load_from_local(trained.checkpoint))
    del headless["head.fc.bias"]
    save_checkpoint(headless, tmp_path / "headless.pth")
    assert_refused(ValueError, "does not fit(.|\n)*head.fc.bias", out, CONFIG, tmp_path / "headless.pth")


def test_a_conversion_that_is_not_exact_is_refused(trained, out, monkeypatch):
    def bend(model):
        model.backbone.switch_to_deploy()
        model.backbone.final_norm.bias.data += 1
        return model

    assert_refused(ConversionError, "float32's rounding; --tolerance", out, CONFIG, trained.checkpoint, tolerance=1e-12)
    verify = module.verify_conversion
    monkeypatch.setattr(module, "verify_conversion", lambda *a, **k: verify(*a, convert=bend, **k))
    assert_refused(ConversionError, "float32: .* relative, accepted 1e-05.*Nothing", out, CONFIG, trained.checkpoint)


def test_a_full_disk_leaves_what_was_there_before(trained, out, monkeypatch):
    def fail(checkpoint, path):
        path.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(torch, "save", fail)
        assert_refused(OSError, "No space", out, CONFIG, trained.checkpoint)
    reparameterize_checkpoint(CONFIG, trained.checkpoint, out)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        reparameterize_checkpoint(CONFIG, trained.checkpoint, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
