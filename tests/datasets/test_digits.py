# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import mmcv
import numpy as np
from sklearn.datasets import load_digits

from mmrepmlp.datasets import write_digits


def read(folder) -> dict[str, tuple[str, np.ndarray]]:
    return {
        str(path.relative_to(folder)): (path.parent.name, mmcv.imread(str(path), "grayscale"))
        for path in sorted(folder.rglob("*.png"))
    }


def test_every_scan_is_written_once_and_held_out_alike_each_time(tmp_path):
    assert write_digits(tmp_path / "a") == dict(train=1437, val=360)
    write_digits(tmp_path / "b")
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name][1], second[name][1]) for name in first)

    source = load_digits()
    expected = Counter((str(d), i.astype(int).tobytes()) for d, i in zip(source.target, source.images))
    written = Counter((d, np.rint(i / 255 * 16).astype(int).tobytes()) for d, i in first.values())
    assert written == expected
    held_out = Counter(name.split("/")[1] for name in first if name.startswith("val"))
    assert sum(held_out.values()) == 360 and max(held_out.values()) - min(held_out.values()) <= 2
