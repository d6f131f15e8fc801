# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from mmrepmlp.apis import speed_table
from mmrepmlp.errors import MMRepMLPError

ROOT = Path(__file__).parents[3]
RESULTS = [ROOT / "docs/results" / name for name in ("compare_b224.json", "compare_t224.json")]


def edited(path: Path, folder: Path, **environment: object) -> Path:
    content = json.loads(path.read_text())
    content["environment"].update(environment)
    (folder / path.name).write_text(json.dumps(content))
    return folder / path.name


def test_the_readme_shows_the_stored_results():
    table = speed_table(RESULTS)
    assert table in (ROOT / "README.md").read_text()
    models = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:6]]
    assert models == ["RepMLPNet-B224"] * 2 + ["RepMLPNet-T224"] * 2


def test_figures_come_from_the_deploy_rows():
    rows = json.loads(RESULTS[0].read_text())["rows"]
    theirs, ours = (
        next(row for row in rows if (row["model"], row["task"], row["batch"]) == (model, "deploy form", 8))
        for model in ("mmpretrain", "mmrepmlp")
    )
    line = speed_table(RESULTS[:1]).splitlines()[3]
    assert f"| 8 | {theirs['milliseconds']:.1f} | {ours['milliseconds']:.1f} |" in line
    assert f"| {theirs['milliseconds'] / ours['milliseconds']:.2f} | {ours['error']:.0e} |" in line


def test_networks_that_differ_have_no_error(tmp_path):
    content = json.loads(RESULTS[0].read_text())
    for row in content["rows"]:
        row["error"] = None
    (tmp_path / "d256.json").write_text(json.dumps(content))
    assert speed_table([tmp_path / "d256.json"]).splitlines()[2].endswith(" |  |")


def test_results_of_different_environments_are_not_mixed(tmp_path):
    other = edited(RESULTS[1], tmp_path, threads=16)
    with pytest.raises(MMRepMLPError, match="different environments"):
        speed_table([RESULTS[0], other])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment": {}, "rows": [{"task": "training step"}]}'])
def test_files_without_deploy_forms_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(MMRepMLPError, match="compare --json"):
        speed_table([tmp_path / "other.json"])
