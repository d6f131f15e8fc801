# SPDX-License-Identifier: Apache-2.0
import signal

import mmcv
import numpy as np
from pycocotools.coco import COCO

from mmrepmlp.datasets import compose_scene, split_digits, write_detection_scenes, write_segmentation_scenes
from mmrepmlp.datasets.compose import compose_all
from mmrepmlp.datasets.scenes import HEIGHT, WIDTH

COUNTS = dict(train=12, val=5)


def test_the_layout_of_segmentation(tmp_path):
    (tmp_path / "seg").mkdir()
    assert write_segmentation_scenes(tmp_path / "seg", overwrite=True, counts=COUNTS) == COUNTS
    for split, number in COUNTS.items():
        images = sorted((tmp_path / "seg/img_dir" / split).iterdir())
        maps = sorted((tmp_path / "seg/ann_dir" / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in maps] and len(maps) == number
        values = np.stack([mmcv.imread(str(path), "unchanged") for path in maps])
        assert values.shape == (number, HEIGHT, WIDTH) and set(np.unique(values)) <= set(range(11))
        expected = compose_scene(
            *split_digits()[split], np.random.default_rng([("train", "val").index(split), 3])
        ).class_map()
        assert np.array_equal(values[3], expected)


def test_detection_shows_the_same_scenes(tmp_path):
    write_segmentation_scenes(tmp_path / "seg", counts=COUNTS)
    assert write_detection_scenes(tmp_path / "det", counts=COUNTS) == COUNTS
    for split, number in COUNTS.items():
        coco = COCO(str(tmp_path / f"det/annotations/{split}.json"))
        assert len(coco.imgs) == number and sorted(coco.cats) == list(range(10))
        for image in coco.imgs.values():
            picture = (tmp_path / "det" / split / image["file_name"]).read_bytes()
            assert picture == (tmp_path / "seg/img_dir" / split / image["file_name"]).read_bytes()
            class_map = mmcv.imread(str(tmp_path / f"seg/ann_dir/{split}/{image['file_name'][:-4]}.png"), "unchanged")
            outlined = np.zeros((10, *class_map.shape), bool)
            for annotation in coco.imgToAnns[image["id"]]:
                mask = coco.annToMask(annotation).astype(bool)
                x, y, width, height = annotation["bbox"]
                rows, columns = np.nonzero(class_map == annotation["category_id"] + 1)
                assert x >= columns.min() and x + width <= columns.max() + 1
                assert y >= rows.min() and y + height <= rows.max() + 1
                outlined[annotation["category_id"]] |= mask
            for digit in range(10):
                inside = outlined[digit][class_map == digit + 1]  # COCO's polygons lose pixels at their edges
                assert inside.mean() > 0.8 if inside.size else not outlined[digit].any()


def without_interrupts(scans: object, labels: object, generator: object) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_ctrl_c_is_for_the_process_that_writes():
    """Else each of those that compose shows a traceback."""
    assert [ignored for _, ignored in compose_all(without_interrupts, "val", 2)] == [True, True]
