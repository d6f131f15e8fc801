# SPDX-License-Identifier: Apache-2.0
"""The pages of the configs list what their metafiles do."""

import pytest
from modelindex.load_model_index import load

from dev.config_readmes import ROOT, TABLE, table

METAFILES = sorted(ROOT.glob("configs/*/metafile.yml"))


@pytest.mark.parametrize("metafile", METAFILES, ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_metafiles(metafile):
    (written,) = TABLE.findall(metafile.with_name("README.md").read_text())
    models = list(load(str(metafile)).models)
    assert written == table(models) and all(model.name in written for model in models)


def test_accuracies_and_sizes_are_in_the_table():
    lines = (ROOT / "configs/repmlpnet/README.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("| [repmlpnet-b224_8xb32_in1k]"))
    assert "| 68.2 M | 6.66 | 80.41 | [file](https://download.openmmlab.com/" in line
