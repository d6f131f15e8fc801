# SPDX-License-Identifier: Apache-2.0
from .repmlpnet import RepMLPNet

__all__ = ["RepMLPNet"]
