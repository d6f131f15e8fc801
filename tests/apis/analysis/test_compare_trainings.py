# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmrepmlp.apis import compare_trainings, evaluate
from mmrepmlp.apis.analysis.compare_trainings import TrainedConfig, TrainingComparison
from mmrepmlp.errors import MMRepMLPError
from tests.fixtures import CONFIG, ROOT, dump_config
from tests.helpers import needs_export, render

PLAIN, DBB = (ROOT / f"configs/dbb/resnet18-slim{name}_1xb64_digits-64px.py" for name in ("", "_dbb"))


@pytest.mark.slow
def test_configs_side_by_side(options, tmp_path, monkeypatch):
    short = {**options, "train_cfg.max_epochs": 1, "train_dataloader.dataset.indices": 128}
    configs = [dump_config(config, short, tmp_path / config.name) for config in (PLAIN, DBB)]
    runs, out = tmp_path / "runs", tmp_path / "result.json"
    comparison = compare_trainings(configs, (3, 4), runs, repeats=2, out=out)
    assert sorted(path.name for path in runs.iterdir()) == [
        f"{config.stem}_seed{seed}" for config in sorted(configs) for seed in (3, 4)
    ]
    assert list(comparison.configs) == [config.stem for config in configs]
    plain, dbb = comparison.configs.values()
    assert plain.parameters[0] == plain.parameters[1] < dbb.parameters[1] < dbb.parameters[0]
    for config, row in zip(configs, (plain, dbb)):
        checkpoint = tmp_path / "runs" / f"{config.stem}_seed4/epoch_1.pth"
        expected = evaluate(config, checkpoint, str(tmp_path / "log"))["accuracy/top1"]
        assert row.metrics["accuracy/top1"][1] == pytest.approx(expected) and all(ms > 0 for ms in row.milliseconds)
        values = row.metrics["accuracy/top1"]
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in render(comparison.table())
    assert "int8" not in render(comparison.table()) and dbb.int8 == {}
    written = json.loads(out.read_text())
    assert written["configs"][DBB.stem]["metrics"] == dbb.metrics and written["seeds"] == [3, 4]
    monkeypatch.delattr("mmrepmlp.apis.analysis.repeated.train")  # what is finished is not trained again
    again = compare_trainings(configs, (3, 4), runs, repeats=2)
    assert [row.metrics for row in again.configs.values()] == [plain.metrics, dbb.metrics]


@needs_export
@pytest.mark.slow
def test_networks_in_int8(learned, tmp_path):
    from mmrepmlp.apis import evaluate_deployment

    config = dump_config(CONFIG, learned.options, tmp_path / "config.py")
    run = tmp_path / "runs/config_seed5"
    shutil.copytree(Path(learned.checkpoint).parent, run)
    (run / "last_checkpoint").write_text(str(run / Path(learned.checkpoint).name))
    comparison = compare_trainings([config], (5,), tmp_path / "runs", repeats=2, int8=True)
    row = comparison.configs["config"]
    expected = evaluate_deployment(config, run / "int8", str(tmp_path / "log"))
    assert row.int8 == {name: [pytest.approx(value)] for name, value in expected.items()}
    assert abs(row.int8["accuracy/top1"][0] - row.metrics["accuracy/top1"][0]) < 5
    (title,) = [line for line in render(comparison.table()).splitlines() if "accuracy" in line]
    assert title.split()[:4] == ["config", "accuracy/top1", "int8", "parameters"]


@pytest.mark.parametrize("configs, seeds", [((PLAIN, PLAIN), (0,)), ((PLAIN,), ())])
def test_what_cannot_be_compared(configs, seeds, tmp_path):
    with pytest.raises(MMRepMLPError, match="expected configs of distinct names, and a seed"):
        compare_trainings(configs, seeds, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name, page, metric",
    [
        ("convs_digits", "convs", "accuracy/top1"),
        ("gradient_reparam_sheets", "repopt", "accuracy/top1"),
        ("gradient_reparam_scenes", "repopt", "mIoU"),
    ],
)
def test_the_documentation_has_the_stored_results(name, page, metric):
    stored = json.loads((ROOT / f"docs/results/{name}.json").read_text())
    rows = {name: TrainedConfig(**row) for name, row in stored["configs"].items()}
    for row in rows.values():
        row.metrics, row.int8 = ({metric: values[metric]} if values else {} for values in (row.metrics, row.int8))
    lines = [line.rstrip() for line in render(TrainingComparison(stored["seeds"], rows).table(), 140).splitlines()]
    text = [line for line in (ROOT / f"docs/{page}.md").read_text().splitlines() if line.strip()]
    assert "\n".join(filter(None, lines)) in "\n".join(text)
