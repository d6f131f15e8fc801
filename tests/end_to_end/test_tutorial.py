# SPDX-License-Identifier: Apache-2.0
"""The tutorial: its notebook is the page, and every command of it runs and does what the page says."""

import json
from pathlib import Path

import cv2
import jupytext
import nbformat
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.end_to_end.processes import serving
from tests.fixtures import ROOT

PAGE, NOTEBOOK = ROOT / "docs/tutorial.md", ROOT / "docs/tutorial.ipynb"
# The bases that the page names for networks of real size.
REAL_SIZE = dict(
    classify="repmlpnet/repmlpnet-b224_8xb32_in1k.py",
    segment="upernet/upernet_repmlpnet-b256_4xb2-80k_cityscapes-512x1024.py",
    detect="retinanet/retinanet_repmlpnet-b224_fpn_1x_coco.py",
)
# What the page says holds for images of any size: the same scenes, most of them in another size and shape.
MIXED_SIZES = """
for split in scenes:
    for i, scene in enumerate(scenes[split]):
        size = 152 + i % 2 * 20, 120 + i // 2 % 2 * 32
        scene.image = cv2.resize(scene.image, size)
        masks = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in scene.masks]
        scene.masks = np.array(masks, bool)
"""


def test_the_notebook_is_the_page():
    page, notebook = jupytext.read(PAGE), nbformat.read(NOTEBOOK, as_version=4)
    contents = [[(cell.cell_type, cell.source) for cell in cells] for cells in (page.cells, notebook.cells)]
    assert contents[0] == contents[1], (
        "docs/tutorial.ipynb is out of date: jupytext --update --to ipynb docs/tutorial.md"
    )
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_every_command_works(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # instead of the home folder
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (composed,) = (i for i, cell in enumerate(notebook.cells) if "compose_scene(" in cell.source)
    notebook.cells.insert(composed + 1, nbformat.v4.new_code_cell(MIXED_SIZES))
    with serving(tmp_path) as python:
        shell = tmp_path / "shell.sh"
        shell.write_text(f'python() {{ {python} "$@"; }}\nmmrepmlp() {{ {python} -m mmrepmlp "$@"; }}\n')
        monkeypatch.setenv("BASH_ENV", str(shell))
        NotebookClient(notebook, timeout=600, resources=dict(metadata=dict(path=str(tmp_path / "docs")))).execute()
    folder = tmp_path / "tutorial"

    classified = read_predictions(folder / "classify")
    right = [prediction["pred_class"] == prediction["image"].partition("/")[0] for prediction in classified]
    assert len(right) > 60 and np.mean(right) > 0.8  # chance: a quarter
    assert printed(notebook, "network.predict", 0).count(" is ") == len(classified[::20])

    overlaps = [overlap(folder, prediction["sem_seg"]) for prediction in read_predictions(folder / "segment")]
    assert len(overlaps) == 40 and np.mean(overlaps) > 0.8
    assert "accuracy" in (folder / "classify/network/deploy.json").read_text()
    assert float(printed(notebook, "network.predict", 1).split()[-1]) > 0.9

    (report,) = folder.glob("detect/deploy-*.json")
    before, after = json.loads(report.read_text())["metrics"]["coco/bbox_mAP_50"]
    assert before == pytest.approx(after, abs=1e-3) and after > 0.7
    assert printed(notebook, "network.predict", 2).count("(48, ") == 3

    monkeypatch.chdir(tmp_path)
    for name, base in REAL_SIZE.items():
        check_real_size(Path(f"tutorial/{name}.py"), base)


def read_predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions/predictions.jsonl").read_text().splitlines()]


def printed(notebook: NotebookNode, code: str, index: int) -> str:
    """What the block printed that is the index-th to contain some code."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source][index]
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def overlap(folder: Path, name: str) -> float:
    """Intersection over union of the digits in a predicted mask and in the mask that the tutorial wrote."""
    predicted = cv2.imread(str(folder / "segment/predictions" / name), cv2.IMREAD_UNCHANGED) == 1
    truth = cv2.imread(str(folder / "scenes/masks/val" / f"{Path(name).name[:3]}.png"), cv2.IMREAD_UNCHANGED) == 1
    return (predicted & truth).sum() / (predicted | truth).sum()


def check_real_size(path: Path, base: str) -> None:
    """The same config with the base of a network of real size is one of the same classes, and gets the data."""
    assert f"`mmrepmlp::{base}`" in PAGE.read_text()
    lines = path.read_text().splitlines()
    path = path.with_name(f"large_{path.name}")
    path.write_text("\n".join([f'_base_ = ["mmrepmlp::{base}"]', *lines[1:]]))
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        train, val = [DATASETS.build(cfg[f"{split}_dataloader"].dataset) for split in ("train", "val")]
    assert len(train) >= 240 and len(val) >= 40 and all("inputs" in dataset[0] for dataset in (train, val))
    (head,) = {"head", "decode_head", "bbox_head"} & cfg.model.keys()
    assert cfg.model[head].num_classes == len(train.metainfo["classes"]) == len(val.metainfo["classes"])
