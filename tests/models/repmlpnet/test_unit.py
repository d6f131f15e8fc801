# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.repmlpnet import speed
from tests.conftest import TINY
from tests.helpers import randomize, relative_error


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("elements", [1, 4 * 8 * 24, 4 * 8 * 24 * 5, 4 * 8 * 24 * 18 * 2])
def test_passes_over_rows_or_samples_change_nothing(monkeypatch, deploy, elements):
    model = RepMLPNet(TINY, img_size=64, out_indices=(0, 1, 2, 3)).eval()
    randomize(model, torch.Generator().manual_seed(0), spread=0.1)
    if deploy:
        model.switch_to_deploy()
    images = torch.randn(3, 3, 72, 96)
    expected = model(images)  # with gradients in one pass
    monkeypatch.setattr(speed, "HIDDEN_ELEMENTS", elements)
    with torch.no_grad():
        actual = model(images)
    for a, e in zip(actual, expected):
        assert relative_error(a, e.detach()) < 1e-5


def test_only_a_cpu_has_a_cache_to_keep_to(monkeypatch):
    monkeypatch.setattr(speed, "HIDDEN_ELEMENTS", 1)
    calls = []

    def double(x, out=None):
        calls.append(tuple(x.shape))
        return torch.mul(x, 2, out=out)

    with torch.no_grad():
        speed.run_in_slices(double, torch.zeros(2, 3, 4, 5, device="meta"), 4)
        assert calls == [(2, 3, 4, 5)]
        speed.run_in_slices(double, torch.zeros(2, 3, 4, 5), 4)
    assert calls[1:] == [(1, 3, 1, 5)] * 8
