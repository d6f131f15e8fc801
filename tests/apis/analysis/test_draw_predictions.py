# SPDX-License-Identifier: Apache-2.0
import mmcv
import pytest

from mmrepmlp.apis import draw_predictions


@pytest.mark.slow
def test_picture_shows_image_truth_and_prediction(short_run, tmp_path):
    draw_predictions(short_run.config, short_run.checkpoint, tmp_path / "picture.png", images=2)
    picture = mmcv.imread(str(tmp_path / "picture.png"))
    assert picture.shape == (24 + 4 + 2 * (240 + 4), 3 * (304 + 4), 3)
    image = mmcv.imread(sorted(str(p) for p in (short_run.folder / "scenes").rglob("val/00000.jpg"))[0])
    first, truth = (picture[28 : 28 + 240, x : x + 304] for x in (0, 308))
    assert (first == image.repeat(2, 0).repeat(2, 1)).all()
    assert (truth != first).any()


@pytest.mark.slow
def test_classifiers_are_refused(trained, config, tmp_path):
    with pytest.raises(ValueError, match="The model predicts .*pred_label.*: expected a segmentor or detector"):
        draw_predictions(config, trained.checkpoint, tmp_path / "picture.png")
