# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of compressing trainings, which are converted before they are deployed."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis import deploy_checkpoint, reparameterize_checkpoint
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.reparameterize.compressed import read_finished
from mmrepmlp.verbs.reparameterize.official import official_state
from tests.compression.test_csgd_hook import FAST, GENEROUS
from tests.compression.test_groups import REPMLPNET, build, classifier
from tests.compression.test_gsm_hook import LAYERS, OPTIMIZER
from tests.compression.test_resrep import SHORT, TOY
from tests.compression.toy import runner

AOFP = dict(type="mmrepmlp.AOFPHook", target=0.6, per_half=10, start=4)
UNFINISHED = dict(
    csgd=("all filters of its clusters", GENEROUS, dict(optimizer=FAST)),
    aofp=("the filters that are masked", dict(AOFP, threshold=10.0), {}),
    resrep=("its compactors", SHORT, dict(epochs=150, model=TOY)),
)
FINISHED = dict(
    aofp=("epoch_20.pth", dict(AOFP, threshold=0.0), {}),  # finds no filter
    gsm=("sparse.pth", dict(type="mmrepmlp.GSMHook", nonzero=0.3, layers=LAYERS), dict(optimizer=OPTIMIZER)),
)


def trained(folder: Path, hook: dict, **settings) -> Path:
    """Train; returns the config of the model, beside which the checkpoints are."""
    runner(folder, hook, **settings).train()
    Config(dict(model=settings.get("model", dict(type="ToyClassifier")))).dump(folder / "toy.py")
    return folder / "toy.py"


@pytest.mark.parametrize("left, hook, settings", UNFINISHED.values(), ids=UNFINISHED)
def test_filters_that_training_left_are_removed_first(left, hook, settings, tmp_path):
    config = trained(tmp_path, hook, **settings)
    checkpoint = tmp_path / f"epoch_{settings.get('epochs', 20)}.pth"
    message = f"{checkpoint} .* still has {left}: .* Run mmrepmlp reparameterize {config} {checkpoint} small.pth"
    for raw in (False, True):
        with pytest.raises(MMRepMLPError, match=message):
            deploy_checkpoint(config, checkpoint, tmp_path / "deployed", raw=raw)
    assert not (tmp_path / "deployed").exists()
    small = reparameterize_checkpoint(config, checkpoint, tmp_path / "small.pth")
    read_finished(small.config, small.checkpoint)


@pytest.mark.parametrize("name, hook, settings", FINISHED.values(), ids=FINISHED)
def test_a_training_that_left_nothing_to_remove_is_deployed(name, hook, settings, tmp_path):
    config = trained(tmp_path, hook, **settings)
    content, state = read_finished(config, tmp_path / name)
    assert content["compression"] and all(torch.equal(state[key], content["state_dict"][key]) for key in state)


def test_the_authors_network_has_no_compactors():
    model = build(dict(type="mmrepmlp.ResRep", model=classifier(REPMLPNET)), "mmpretrain")
    with pytest.raises(MMRepMLPError, match=r"the model has backbone.\S+.compactor.weight"):
        official_state(model)
