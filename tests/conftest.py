# SPDX-License-Identifier: Apache-2.0
import json
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import settings
from mmengine.registry import DefaultScope

from tests.fixtures import (  # noqa: F401
    build_once,
    config,
    digits,
    learned,
    options,
    short_run,
    trained,
)
from tests.helpers import EXPORTS
from tests.session import (  # noqa: F401
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_sessionfinish,
    pytest_sessionstart,
    pytest_terminal_summary,
)

# What imports the export, which says by itself where torch is too old for it.
EXPORTING = (
    *("export/*", "verbs/deploy/*", "quantization/test_aware.py", "end_to_end/test_quantization_aware.py"),
    *("dev/test_sweep_configs.py", "verbs/test_explain_families.py"),
)
collect_ignore_glob = [] if EXPORTS else list(EXPORTING)
DATA = Path(__file__).parent / "data"
TINY = dict(channels=[8, 16, 32, 64], depths=[1, 1, 2, 1], sharesets_nums=[1, 2, 4, 8])
SHALLOW = dict(TINY, depths=[1, 1, 1, 1])  # where each unit takes an exporter its time

settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Keep what killed processes leave in the temporary folder in that of the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def isolated():
    """Seed every test alike; take back what one sets: threads, determinism, environment variables, default scope.

    Where the processor has no instructions for bfloat16, tests emulate it.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    with patch.dict(os.environ), patch("mmrepmlp.engine.bfloat16.CPUINFO", Path("unknown")):
        yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope="session")
def official_shapes() -> dict:
    """Names and shapes of the tensors in the six released models, and their numbers of parameters."""
    return json.loads((DATA / "official_state_dicts.json").read_text())


@pytest.fixture(scope="session")
def tiny_outputs() -> dict[str, torch.Tensor]:
    """Inputs, stage features and logits of the authors' code on a tiny network."""
    with np.load(DATA / "tiny_official_outputs.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(params=["train", "deploy"])
def tiny_state(request) -> dict[str, torch.Tensor]:
    """The tiny network's weights under the authors' names, in training form and as their conversion leaves it."""
    return torch.load(DATA / f"tiny_official_{request.param}.pth", weights_only=True)


@pytest.fixture
def tiny_training_state() -> dict[str, torch.Tensor]:
    return torch.load(DATA / "tiny_official_train.pth", weights_only=True)
