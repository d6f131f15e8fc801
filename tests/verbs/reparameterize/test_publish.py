# SPDX-License-Identifier: Apache-2.0
import hashlib
import os

import mmengine
import pytest
from mmengine.config import Config
from modelindex.load_model_index import load
from torch import nn

from mmrepmlp.apis import publish_checkpoint, reparameterize_checkpoint
from mmrepmlp.checkpoint import load_from_local, unwrap
from mmrepmlp.models import ACBConv2d, DBBConv2d, RepMLPNet, RepOptVGG
from mmrepmlp.verbs.model import build_model
from mmrepmlp.verbs.reparameterize.publish import collection_of
from tests.fixtures import CONFIG

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(trained, config, tmp_path_factory):
    """A conversion whose report has metrics on the real digits."""
    out = tmp_path_factory.mktemp("converted") / "deploy.pth"
    return reparameterize_checkpoint(config, trained.checkpoint, out, verify_on="test")


def test_what_is_published_is_the_model_and_its_figures(report, tmp_path):
    published = publish_checkpoint(report.config, report.checkpoint, tmp_path / "mini_digits.pth")
    digest = hashlib.sha256(published.checkpoint.read_bytes()).hexdigest()[:8]
    assert sorted(os.listdir(tmp_path)) == [f"mini_digits-{digest}.pth", f"mini_digits-{digest}.yml"]
    build_model(Config.fromfile(report.config), load_from_local(published.checkpoint)["state_dict"])
    (model,) = load(str(published.metafile)).models
    assert (model.name, model.weights, model.in_collection) == ("mini_digits", published.checkpoint.name, "RepMLPNet")
    assert (model.metadata.parameters, model.metadata.flops) == (report.parameters[1], report.macs[1])
    (result,) = model.results
    assert (result.task, result.dataset) == ("Image Classification", "digits")
    assert result.metrics == {"accuracy/top1": round(report.metrics["accuracy/top1"][1], 4)}


def test_a_training_checkpoint_loses_what_only_training_needs(trained, tmp_path):
    published = publish_checkpoint(CONFIG, trained.checkpoint, tmp_path / "mini.pth")
    assert load_from_local(published.checkpoint).keys() == {"meta", "state_dict"}
    assert published.checkpoint.stat().st_size < trained.checkpoint.stat().st_size / 2.5
    entry = mmengine.load(published.metafile)["Models"][0]
    assert "Results" not in entry and entry["Config"] == CONFIG
    metafile = published.metafile.read_text()
    published.metafile.write_text("edited")
    with pytest.raises(FileExistsError, match=r"\.yml already exists"):
        publish_checkpoint(CONFIG, trained.checkpoint, tmp_path / "mini.pth")
    assert published.metafile.read_text() == "edited"
    publish_checkpoint(CONFIG, trained.checkpoint, tmp_path / "mini.pth", overwrite=True)
    assert published.metafile.read_text() == metafile


def test_a_report_serves_both_of_its_checkpoints_and_no_other(report, trained, tmp_path):
    json = report.checkpoint.with_suffix(".json")
    published = publish_checkpoint(CONFIG, trained.checkpoint, tmp_path / "mini.pth", report=json)
    metrics = mmengine.load(published.metafile)["Models"][0]["Results"][0]["Metrics"]
    assert metrics == {"accuracy/top1": round(report.metrics["accuracy/top1"][0], 4)}
    other = trained.checkpoint.with_name("epoch_1.pth")
    assert unwrap(load_from_local(other))
    with pytest.raises(ValueError, match=r"belongs to epoch_2\.pth and deploy-.*, not to epoch_1\.pth"):
        publish_checkpoint(CONFIG, other, tmp_path / "other.pth", report=json)
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize(
    "model, collection",
    [
        (lambda: RepMLPNet("T", 64), "RepMLPNet"),
        (lambda: RepOptVGG(dict(depths=[1], channels=[4]), strides=(2, 2), out_indices=0), "RepOpt-VGG"),
        (lambda: nn.Sequential(DBBConv2d(4, 4, 3, deploy=True)), "DBB"),
        (lambda: nn.Sequential(ACBConv2d(4, 4, 3)), "ACNet"),
    ],
)
def test_each_model_belongs_to_its_collection(model, collection):
    assert collection_of(model()) == collection
