# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from mmrepmlp.datasets import compose_scene, split_digits
from mmrepmlp.datasets.scenes import DIGITS, HEIGHT, WIDTH


def scene(seed: int):
    return compose_scene(*split_digits()["train"], np.random.default_rng(seed))


def test_a_seed_makes_a_scene():
    one, again, another = scene(1), scene(1), scene(2)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.masks, again.masks)
    assert not np.array_equal(one.image, another.image)


@pytest.mark.parametrize("seed", range(20))
def test_digits_show_apart_from_one_another_and_from_the_background(seed):
    composed = scene(seed)
    assert composed.image.shape == (HEIGHT, WIDTH, 3) and composed.image.dtype == np.uint8
    assert 1 <= len(composed.digits) == len(composed.masks) <= DIGITS[1]
    assert composed.masks.sum(0).max() == 1  # no pixel belongs to two
    assert all(mask.sum() > 50 for mask in composed.masks)
    class_map = composed.class_map()
    for digit, mask in zip(composed.digits, composed.masks):
        assert (class_map[mask] == digit + 1).all()
    assert ((class_map == 0) == ~composed.masks.any(0)).all()
