# SPDX-License-Identifier: Apache-2.0
import mmcv
import numpy as np
import pytest

from mmrepmlp.datasets import compose_sheet, split_digits, write_sheets
from mmrepmlp.datasets.sheets import SIDE

COUNTS = dict(train=12, val=5)


@pytest.mark.parametrize("seed", range(20))
def test_the_class_is_what_stands_at_the_top_left(seed):
    scans = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)])  # paper is 3, ink is 7
    sheet, label = compose_sheet(scans, np.array([3, 7]), np.random.default_rng(seed))
    assert sheet.shape == (SIDE, SIDE) and sheet.dtype == np.uint8
    middle = sheet[SIDE // 4 - 8 : SIDE // 4 + 8, SIDE // 4 - 8 : SIDE // 4 + 8].mean()
    assert (middle > 120) == (label == 7)


def test_each_field_has_a_digit():
    scans, labels = split_digits()["train"]
    sheets = np.stack([compose_sheet(scans, labels, np.random.default_rng(seed))[0] for seed in range(200)])
    fields = sheets.reshape(200, 2, SIDE // 2, 2, SIDE // 2).astype(float).mean((0, 2, 4))
    assert fields.std() / fields.mean() < 0.03 and fields.min() > 80


def test_sheets_are_written_by_class_from_scans_of_their_split(tmp_path):
    assert write_sheets(tmp_path / "sheets", counts=COUNTS) == COUNTS
    for index, (split, number) in enumerate(COUNTS.items()):
        files = {path.stem: path for path in (tmp_path / "sheets" / split).rglob("*.png")}
        assert sorted(files) == [f"{i:05d}" for i in range(number)]
        sheet, label = compose_sheet(*split_digits()[split], np.random.default_rng([index, 4]))
        assert np.array_equal(mmcv.imread(str(files["00004"]), "grayscale"), sheet)
        assert files["00004"].parent.name == str(label)
