# SPDX-License-Identifier: Apache-2.0
"""Run the networks of a model in bfloat16, and everything between and after them in float32."""

import copy
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from mmrepmlp.models.common import GroupedLinear

# The networks in a model of any framework, such as backbone, neck, rpn_head, roi_head.bbox_head.0.
NETWORK = re.compile(r"(.*\.)?(backbone|neck|\w*head)(\.\d+)?")
PRODUCTS = (_ConvNd, nn.Linear, GroupedLinear)

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # instructions for bfloat16, as Linux names them; the last of ARM
NO_BFLOAT16 = "This processor has no instructions for bfloat16"


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; True where it is not known."""
    return not CPUINFO.exists() or not FLAGS.isdisjoint(CPUINFO.read_text().split())


def compute_in_bfloat16(model: nn.Module) -> nn.Module:
    """Copy a model, for inference with backbone, neck and heads in bfloat16.

    torch's autocast runs convolutions and matrix products in bfloat16. Their weights are cast once, here, since
    autocast would read and cast all of them in each call, which takes time at batch size 1; the outputs are the same.
    Each network takes and returns float32, because operators between them, such as RoIAlign and NMS, do not support
    bfloat16, and because its 8 significant bits would move box coordinates by pixels. The copy cannot be copied again.

    On a processor without instructions for bfloat16, which would emulate it many times slower, the copy computes in
    float32, and a warning says so.
    """
    model = copy.deepcopy(model)
    if all(parameter.device.type == "cpu" for parameter in model.parameters()) and not has_bfloat16():
        print_log(f"{NO_BFLOAT16}: computed in float32.", "current", logging.WARNING)
        return model
    for network in [part for name, part in model.named_modules() if NETWORK.fullmatch(name)] or [model]:
        network.forward = in_bfloat16(network.forward)
        for layer in network.modules():
            if isinstance(layer, PRODUCTS):
                layer.weight.data = layer.weight.data.to(torch.bfloat16)
    return model


def in_bfloat16(forward: Callable[..., object]) -> Callable[..., object]:
    """Wrap a function to be called under autocast to bfloat16, and to return its tensors in float32."""

    @functools.wraps(forward)
    def call(*args: object, **kwargs: object) -> object:
        devices = [leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        with torch.autocast(devices[0] if devices else "cpu", torch.bfloat16):
            outputs = forward(*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, outputs)

    return call
