# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest

from mmrepmlp.apis import compare_graphs, export_checkpoint
from tests.apis.conversion.test_reparameterize_models import save_random
from tests.fixtures import CONFIG
from tests.helpers import render


@pytest.mark.slow
def test_graphs_without_names_have_those_of_their_files(options, tmp_path):
    save_random(CONFIG, tmp_path / "random.pth")
    first = export_checkpoint(CONFIG, tmp_path / "random.pth", tmp_path / "one/first.onnx").path
    second, namesake = tmp_path / "one/second.onnx", tmp_path / "two/first.onnx"
    namesake.parent.mkdir()
    for path in (second, namesake):
        shutil.copy(first, path)
    settings = dict(work_dir=str(tmp_path), cfg_options={**options, "test_dataloader.dataset.indices": 16}, repeats=1)
    comparison = compare_graphs(CONFIG, [first, second], **settings)
    assert list(comparison.graphs) == ["first", "second"] and "second" in render(comparison.table())
    one, two = comparison.graphs.values()
    assert one.metrics == two.metrics and one.megabytes == two.megabytes == first.stat().st_size / 1e6
    assert list(compare_graphs(CONFIG, [first, namesake], **settings).graphs) == [str(first), str(namesake)]
