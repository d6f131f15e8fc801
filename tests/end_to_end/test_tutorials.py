# SPDX-License-Identifier: Apache-2.0
"""The tutorials: each notebook is its page, and every command of it runs, alone, and does what the page says."""

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

from tests.end_to_end.processes import serving
from tests.fixtures import ROOT

# The bases that the pages name for full-size models.
FULL_SIZE = dict(
    classify="repmlpnet/repmlpnet-b224_8xb32_in1k.py",
    segment="upernet/upernet_repmlpnet-b256_4xb2-80k_cityscapes-512x1024.py",
    detect="retinanet/retinanet_repmlpnet-b224_fpn_1x_coco.py",
)
# What the pages say holds for images of any size: the same scenes, most of them in another size and shape.
MIXED_SIZES = """
from itertools import count

import cv2
import numpy as np
from mmrepmlp import datasets

def compose_scene(*arguments, compose=datasets.compose_scene, number=count()):
    scene, i = compose(*arguments), next(number)
    size = 152 + i % 2 * 20, 120 + i // 2 % 2 * 32
    scene.image = cv2.resize(scene.image, size)
    masks = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in scene.masks]
    scene.masks = np.array(masks, bool)
    return scene

datasets.compose_scene = compose_scene
"""


def files(task: str) -> tuple[Path, Path]:
    """A tutorial's page and its notebook."""
    page = ROOT / f"docs/tutorial_{task}.md"
    return page, page.with_suffix(".ipynb")


@pytest.mark.parametrize("task", FULL_SIZE)
def test_the_notebook_is_the_page(task):
    path, notebook_path = files(task)
    page, notebook = jupytext.read(path), nbformat.read(notebook_path, as_version=4)
    contents = [[(cell.cell_type, cell.source) for cell in cells] for cells in (page.cells, notebook.cells)]
    assert contents[0] == contents[1], (
        f"docs/{notebook_path.name} is out of date: jupytext --update --to ipynb docs/{path.name}"
    )
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.parametrize("task, base", FULL_SIZE.items(), ids=FULL_SIZE)
def test_every_command_works(task, base, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # instead of the home folder
        monkeypatch.setenv(name, str(tmp_path / name))
    page, notebook_path = files(task)
    notebook = nbformat.read(notebook_path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(MIXED_SIZES))
    with serving(tmp_path) as python:
        shell = tmp_path / "shell.sh"
        shell.write_text(f'python() {{ {python} "$@"; }}\nmmrepmlp() {{ {python} -m mmrepmlp "$@"; }}\n')
        monkeypatch.setenv("BASH_ENV", str(shell))
        NotebookClient(notebook, timeout=600, resources=dict(metadata=dict(path=str(tmp_path / "docs")))).execute()
    (deployed,) = [cell for cell in notebook.cells if cell.cell_type == "code" and "network.predict" in cell.source]
    printed = "".join(output.text for output in deployed.outputs if output.get("name") == "stdout")
    monkeypatch.chdir(tmp_path)
    CHECKS[task](Path("tutorial"), printed)
    assert f"`mmrepmlp::{base}`" in page.read_text()
    check_full_size(Path(f"tutorial/{task}.py"), base)


def check_classify(folder: Path, printed: str) -> None:
    classified = read_predictions(folder / "classify")
    right = [prediction["pred_class"] == prediction["image"].partition("/")[0] for prediction in classified]
    assert len(right) > 60 and np.mean(right) > 0.8  # chance: a quarter
    assert printed.count(" is ") == len(classified[::20])
    assert "accuracy" in (folder / "classify/network/deploy.json").read_text()


def check_segment(folder: Path, printed: str) -> None:
    overlaps = [overlap(folder, prediction["sem_seg"]) for prediction in read_predictions(folder / "segment")]
    assert len(overlaps) == 40 and np.mean(overlaps) > 0.8
    assert float(printed.split()[-1]) > 0.9


def check_detect(folder: Path, printed: str) -> None:
    (report,) = folder.glob("detect/deploy-*.json")
    before, after = json.loads(report.read_text())["metrics"]["coco/bbox_mAP_50"]
    assert before == pytest.approx(after, abs=1e-3) and after > 0.7
    assert printed.count("(48, ") == 3
    assert len(read_predictions(folder / "detect")) == 40


CHECKS = dict(classify=check_classify, segment=check_segment, detect=check_detect)


def read_predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions/predictions.jsonl").read_text().splitlines()]


def overlap(folder: Path, name: str) -> float:
    """Intersection over union of the digits in a predicted mask and in the mask that the tutorial wrote."""
    predicted = cv2.imread(str(folder / "segment/predictions" / name), cv2.IMREAD_UNCHANGED) == 1
    truth = cv2.imread(str(folder / "scenes/masks/val" / f"{Path(name).name[:3]}.png"), cv2.IMREAD_UNCHANGED) == 1
    return (predicted & truth).sum() / (predicted | truth).sum()


def check_full_size(path: Path, base: str) -> None:
    """The same config with the base of a full-size model is one of the same classes, and gets the data."""
    lines = path.read_text().splitlines()
    path = path.with_name(f"large_{path.name}")
    path.write_text("\n".join([f'_base_ = ["mmrepmlp::{base}"]', *lines[1:]]))
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        train, val = [DATASETS.build(cfg[f"{split}_dataloader"].dataset) for split in ("train", "val")]
    assert len(train) >= 240 and len(val) >= 40 and all("inputs" in dataset[0] for dataset in (train, val))
    (head,) = {"head", "decode_head", "bbox_head"} & cfg.model.keys()
    assert cfg.model[head].num_classes == len(train.metainfo["classes"]) == len(val.metainfo["classes"])
