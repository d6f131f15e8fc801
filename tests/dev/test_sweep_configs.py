# SPDX-License-Identifier: Apache-2.0
import csv

import mmengine
import pytest
import torch

from dev.sweep.families import choose_stages, find_families
from dev.sweep.sweep_configs import Sweep, sweep_configs, versions
from dev.sweep.trial import Trial, run_trial
from tests.end_to_end.processes import PRELOADED
from tests.fixtures import iter_small_configs

# A classifier; segmentors with channels to set, with masks to classify; detectors with queries, of stages.
FAMILIES = [
    ("mmpretrain", "convnext", "whole"),
    ("mmseg", "upernet", "whole"),
    ("mmseg", "mask2former", "maps"),
    ("mmdet", "detr", "maps"),
    ("mmdet", "cascade_rcnn", "maps"),
]


@pytest.mark.slow
@pytest.mark.parametrize("package, family, export", FAMILIES)
def test_families_train_convert_and_export(package, family, export, monkeypatch, tmp_path):
    # Smaller images and heads take less time, and so does one size of them.
    monkeypatch.setattr("dev.sweep.trial.iter_configs", iter_small_configs)
    monkeypatch.setattr("dev.sweep.trial.SIDES", (64, 128))
    monkeypatch.setattr("mmrepmlp.verbs.reparameterize.verification.SCALES", (1.0,))
    trial = run_trial(package, family, find_families(package)[family], tmp_path)
    assert (trial.control, trial.train, trial.convert, trial.export) == ("pass", "pass", "pass", export), trial.reason
    assert float(trial.error) < 1e-5 and trial.config.startswith(f"{package}::{family}/")


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(monkeypatch, tmp_path):
    # There is one server of processes, and others need it without this package.
    monkeypatch.setattr("dev.sweep.sweep_configs.PRELOADED", PRELOADED)
    out = tmp_path / "table.csv"
    out.write_text(Sweep([Trial("mmpretrain", "resnet", "a config", "fail", reason="as before")]).to_csv())
    sweep = sweep_configs(out, packages=["mmpretrain"], families=["lenet", "resnet"])
    with out.open() as file:
        rows = {row["family"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"lenet", "resnet"} and rows["resnet"]["reason"] == "as before"
    assert rows["lenet"]["config"].startswith("mmpretrain::lenet/") and rows["lenet"]["control"] != "-"
    page = out.with_suffix(".md").read_text()
    assert "| mmpretrain | 2 |" in page and "torch " in page and "(table.csv)" in page
    assert len(sweep.trials) == 2 and (tmp_path / "table.log").exists()
    again = sweep_configs(out, packages=["mmpretrain"], families=["lenet", "resnet"])
    assert again.to_csv() == sweep.to_csv()


def test_stages_are_chosen_by_strides_and_numbers():
    def maps(*sides):
        return [torch.zeros(1, 8 + i, side, side) for i, side in enumerate(sides)]

    assert choose_stages(maps(32, 16, 8, 4), 128) == (0, 1, 2, 3)
    assert choose_stages(maps(16, 8, 4), 128) == (1, 2, 3)
    assert choose_stages(maps(32, 16, 16, 16), 128) == (0, 1, 2, 3)  # dilated: as many, whatever the strides
    assert choose_stages([torch.zeros(1, 8, 32, 32)] * 2, 128) == (0,)  # stacked
    assert choose_stages([torch.zeros(1, 8, 8, 8)] * 4, 128) == (0, 1, 2, 3)  # of a transformer
    assert choose_stages([torch.zeros(1, 8)], 128) == (3,)  # pooled
    with pytest.raises(ValueError, match="take 5 maps, a RepMLPNet has 4"):
        choose_stages(maps(64, 32, 16, 8, 4), 128)


def test_failures_are_those_of_the_swapped_backbone():
    rows = [
        Trial("mmdet", "a", control="fail", reason="no CUDA"),
        Trial("mmdet", "b", "mmdet::b/b.py", control="pass", train="fail", reason="train: 4 | 5 maps"),
        Trial("mmdet", "c", control="pass", train="pass", convert="pass", export="maps"),
    ]
    sweep = Sweep(rows)
    assert [trial.family for trial in sweep.failures()] == ["b"]
    assert sweep.count_passed("mmdet") == [2, 1, 1, 1]
    page = sweep.to_markdown("table.csv")
    assert "| mmdet | 3 | 2 | 1 | 1 | 1 |" in page and page.endswith("| mmdet::b/b.py | train: 4 \\| 5 maps |\n")
    assert "config | first step" not in Sweep(rows[2:]).to_markdown("table.csv")


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="No configs of nosuch in mmseg: expected names of folders"):
        sweep_configs(tmp_path / "table.csv", packages=["mmseg"], families=["upernet", "nosuch"])
    with pytest.raises(ValueError, match="No configs of any family in mmnone"):
        sweep_configs(tmp_path / "table.csv", packages=["mmnone"])
    assert not list(tmp_path.iterdir())


def test_versions_are_those_of_the_installed_line():
    found = dict(entry.split() for entry in versions())
    assert torch.__version__.startswith(found["torch"]) and found.keys() & {"mmcv", "onedl-mmcv", "mmcv-lite"}
    assert mmengine.__version__ in (found.get("mmengine"), found.get("onedl-mmengine"))
