# SPDX-License-Identifier: Apache-2.0
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from mmrepmlp.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """MMEngine's data-parallel wrapper, extended to processes without a GPU. On GPUs it changes nothing.

    Args:
        module: The model. Without a GPU its SyncBN layers become BN layers.
        device_ids: The GPU of this process; MMEngine passes one even if there is none. Default: None.
        **settings: Further arguments of :class:`mmengine.model.MMDistributedDataParallel`.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None, **settings) -> None:
        if get_device() == "cpu":
            device_ids = None
            count = sum(type(part).__name__ == "SyncBatchNorm" for part in module.modules())
            text = f"SyncBN needs a GPU and none is available: {count} SyncBN layers are replaced by BN."
            if count:
                print_log(text, "current")
            module = revert_sync_batchnorm(module)  # as MMEngine does in a single process
        super().__init__(module, device_ids=device_ids, **settings)
