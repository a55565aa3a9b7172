"""Copies to a GPU that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, as `tensor.to`, but that what comes from the CPU is in the queue when this returns.

    The driver has read ordinary memory by then. Pinned memory it reads later, when its owner may have filled it
    again, so that is copied first.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor.clone() if tensor.is_pinned() else tensor).to(device, non_blocking=True)
