"""What is copied to a GPU without waiting is in no memory that its owner may still write to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels.devices import to_device


class Copied(Tensor):
    """A CPU tensor that tells how it would be copied to a GPU."""

    pinned: bool
    cloned = False

    @staticmethod
    def of(pinned: bool) -> Copied:
        tensor = torch.arange(3).as_subclass(Copied)
        tensor.pinned = pinned
        return tensor

    def is_pinned(self, *_: Any) -> bool:
        return self.pinned

    def clone(self, *_: Any, **__: Any) -> Any:
        copy = Copied.of(pinned=False)
        copy.cloned = True
        return copy

    def to(self, *args: Any, **options: Any) -> Any:
        return args, options, self.cloned


def test_only_pinned_memory_is_copied_first() -> None:
    gpu = torch.device("cuda", 1)
    assert to_device(Copied.of(pinned=False), gpu) == ((gpu,), {"non_blocking": True}, False)
    assert to_device(Copied.of(pinned=True), gpu) == ((gpu,), {"non_blocking": True}, True)


def test_elsewhere_it_is_a_plain_copy() -> None:
    here = torch.arange(3)
    assert to_device(here, torch.device("cpu")) is here
    assert to_device(here, torch.device("meta")).is_meta
