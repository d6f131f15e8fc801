# SPDX-License-Identifier: Apache-2.0
import pytest
import torch


@pytest.fixture
def alone():
    """A process group of one, without a network."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()
