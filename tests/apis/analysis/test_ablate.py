# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import ablate
from mmrepmlp.apis.analysis.ablate import FULL, VARIANTS, ZEROED, Ablation
from mmrepmlp.apis.model import build_model
from mmrepmlp.checkpoint import load_from_local
from mmrepmlp.datasets import write_sheets
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet
from tests.fixtures import ROOT
from tests.helpers import render

SHEETS = str(ROOT / "configs/repmlpnet/repmlpnet-mini_1xb64_digits-sheets-64px.py")


@pytest.mark.slow
def test_parts_are_left_out_and_zeroed(tmp_path):
    write_sheets(tmp_path / "sheets", counts=dict(train=128, val=100))
    options = {f"{split}_dataloader.dataset.data_root": str(tmp_path / "sheets") for split in ("train", "val", "test")}
    options |= {f"{split}_dataloader.num_workers": 0 for split in ("train", "val", "test")}
    options |= {"train_cfg.max_epochs": 2, "default_hooks.checkpoint.interval": 2}
    arguments = dict(seeds=(1,), work_dir=str(tmp_path / "runs"), cfg_options=options)
    ablation = ablate(SHEETS, **arguments, out=tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == dict(config=Path(SHEETS).stem, seeds=[1], metrics=ablation.metrics)
    assert ablation.metrics.keys() == VARIANTS.keys() | ZEROED.keys()

    states = {}
    for variant in VARIANTS:
        folder = tmp_path / "runs" / f"{variant.replace(' ', '_')}_seed1"
        states[variant] = load_from_local(folder / "epoch_2.pth")["state_dict"]
    norms = {name for name in states[FULL] if ".fc3_bn." in name and name.endswith(("weight", "bias"))}
    assert len(norms) == 10 and all(states["without fc3"][name].eq(0).all() for name in norms)
    assert all(states[FULL][name].ne(0).any() for name in norms)
    assert not any("repconv" in name for name in states["without local perceptron"])

    # What the network without one of its parts predicts, by hand.
    cfg = Config.fromfile(SHEETS)
    cfg.merge_from_dict(options)
    files = sorted((tmp_path / "sheets/val").rglob("*.png"))
    images = torch.from_numpy(np.stack([mmcv.imread(str(path)) for path in files]))
    labels = [int(path.parent.name) for path in files]
    for name, part in ZEROED.items():
        model = build_model(cfg, states[FULL])
        for key, parameter in model.named_parameters():
            if part in key:
                parameter.data.zero_()
        with torch.no_grad():
            scores = model(
                model.data_preprocessor(dict(inputs=list(images.permute(0, 3, 1, 2))))["inputs"], mode="tensor"
            )
        right = np.mean(scores.argmax(1).numpy() == labels)
        assert ablation.metrics[name]["accuracy/top1"] == [pytest.approx(100 * right, abs=1e-3)]

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("epoch_*.pth")}
    again = ablate(SHEETS, **arguments)
    assert again == ablation
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("epoch_*.pth")}
    assert f"{ablation.metrics[FULL]['accuracy/top1'][0]:.2f}" in render(ablation.table())


def test_the_table_has_mean_and_deviation():
    values = [90.0, 91.5, 93.75]
    table = render(Ablation("a_config", [0, 1, 2], {FULL: {"accuracy/top1": values}}).table())
    assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in table and "a_config, seeds [0, 1, 2]" in table


def test_another_backbone_and_no_seed_are_refused(tmp_path):
    for settings, seeds in (({"model.backbone.deploy": True}, (0,)), ({}, ()), ({"model.backbone.type": "VAN"}, (0,))):
        with pytest.raises(MMRepMLPError, match=r"expected a model with backbone type='mmrepmlp.RepMLPNet'"):
            ablate(SHEETS, seeds, str(tmp_path / "runs"), settings)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["mmrepmlp.QuantizedRepMLPNet", RepMLPNet], ids=str)
def test_every_repmlpnet_is_taken(kind, monkeypatch, tmp_path):
    def stop(*arguments):
        raise InterruptedError

    monkeypatch.setattr("mmrepmlp.apis.analysis.ablate.train_once", stop)
    with pytest.raises(InterruptedError):
        ablate(SHEETS, (0,), str(tmp_path), {"model.backbone.type": kind})


def test_the_documentation_has_the_stored_results():
    table = render(Ablation(**json.loads((ROOT / "docs/results/ablation_sheets.json").read_text())).table())
    page = (ROOT / "docs/segmentation.md").read_text()
    lines = [line.rstrip() for line in table.splitlines() if line.strip()]
    assert "\n".join(lines) in "\n".join(line for line in page.splitlines() if line.strip())
