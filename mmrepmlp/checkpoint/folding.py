# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping

from torch import Tensor, nn

from .validate import check_state_dict


def required_tensors(source: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict has to hold for a network: all of its own but counters of batches, which may be missing."""
    wanted = source.state_dict().items()
    return {name: value for name, value in wanted if name in state or not name.endswith("num_batches_tracked")}


def fold_state_dict(source: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict to deploy form, at least in float32.

    Args:
        source: The network that it belongs to, without values, on the meta device. Converted in place.
        state: The state dict.

    Raises:
        ValueError: The state dict does not fit the network.
    """
    check_state_dict(required_tensors(source, state), state)
    precise = {name: v.float() if v.is_floating_point() and v.itemsize < 4 else v for name, v in state.items()}
    nn.Module.load_state_dict(source, precise, assign=True)
    source.switch_to_deploy()
    return source.state_dict()
