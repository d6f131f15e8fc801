# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from tests.engine.annotated import coco_dataset


@pytest.fixture
def alone():
    """A process group of one, without a network."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def detection(tmp_path):
    boxes = [dict(id=i, image_id=0, category_id=c, bbox=[0, 0, 2, 2], area=4, iscrowd=0) for i, c in ((8, 1), (9, 2))]
    images = [dict(id=0, file_name="0.png", height=4, width=4)]
    coco = dict(images=images, annotations=boxes, categories=[dict(id=1, name="a"), dict(id=2, name="b")])
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return coco_dataset(tmp_path, ("a", "b"))
