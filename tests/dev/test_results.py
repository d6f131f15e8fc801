# SPDX-License-Identifier: Apache-2.0
"""The tables of the documentation are those of the stored results, each number in one place."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from dev import results
from dev.results import MARKED, RESULTS, ROOT, TABLES, fill, render
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.report import BenchmarkReport

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_tables_are_those_of_the_stored_results(page):
    assert fill(page.read_text()) == page.read_text(), "run python -m dev.results"


def test_each_result_stands_in_one_place():
    places = Counter(name for page in PAGES for _, name, _ in MARKED.findall(page.read_text()))
    assert places == Counter([*TABLES])
    used = {name for table in TABLES.values() for name in table.results}
    assert used == {path.stem for path in RESULTS.glob("*.json")}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_have_a_date_and_print_as_a_table(path):
    report = BenchmarkReport.read(path)
    assert report.environment["date"] >= "2026-11-25"
    assert len(report.table().rows) == len(report.rows) > 1


def write(folder, name, rows, **environment):
    content = {"environment": {"threads": 2, "torch": "2.14.1", "repeats": 5, **environment}, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def rows_of(model, *milliseconds):
    return [
        dict(model=model, task="eager", batch=batch, milliseconds=value, speedup=None, error=None)
        for batch, value in enumerate(milliseconds, 1)
    ]


def test_networks_stand_side_by_side_with_the_figures_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    ours = [row | dict(speedup=2.0, error=3e-6) for row in rows_of("mmrepmlp", 5.04, 6.0)]
    write(tmp_path, "a", [*rows_of("sgemm", 1.0), *rows_of("mmpretrain", 10.0, 12.0), *ours])
    table = replace(TABLES["runtimes"], results=["a"])
    assert render(table).splitlines() == [
        "| runtime | batch | mmpretrain, ms | mmrepmlp, ms | speed-up | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| eager | 1 | 10.0 | 5.0 | 2.00 | 3e-06 |",
        "| eager | 2 | 12.0 | 6.0 | 2.00 | 3e-06 |",
        "",
        "2 threads, torch 2.14.1; medians of 5 interleaved calls.",
    ]


def test_seeds_are_a_mean_and_a_deviation(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    write(tmp_path, "a", [{"network": "whole", "accuracy/top1": [90.0, 92.0]}], seeds=[0, 1])
    write(tmp_path, "b", [{"network": "part", "accuracy/top1": [50.5]}], seeds=[0, 1])
    lines = render(replace(TABLES["ablation"], results=["a", "b"])).splitlines()
    assert lines[2:4] == ["| whole | 91.00 ± 1.41 |", "| part | 50.50 |"]


@pytest.mark.parametrize("difference", [dict(torch="2.15.0"), dict(threads=4), dict(processor="another")])
def test_results_of_different_environments_make_no_table(tmp_path, monkeypatch, difference):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    write(tmp_path, "a", rows_of("mmrepmlp", 1.0))
    write(tmp_path, "b", rows_of("mmrepmlp", 1.0), **difference)
    with pytest.raises(MMRepMLPError, match="a, b were measured in different environments"):
        render(replace(TABLES["runtimes"], results=["a", "b"]))
