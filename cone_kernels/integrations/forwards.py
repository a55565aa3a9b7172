"""The forwards of one step or one evaluation: which of them count, and to which sums they are added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from cone_kernels.models.transformers_names import INPUTS, takes_cache
from cone_kernels.probe.gathered import Gathered


@dataclass(eq=False)
class Forwards:
    """Forwards under one set of weights, of two kinds: those of the second count where there is none of the first.

    Attributes:
        is_first: whether the forward that begins is of the first kind.
        others: whether those of the second kind count at all.
        adapters: what `adapters_in_use` gave where they began.
        first, second: the sums of each kind.
        n_seen: how many there were of all kinds, counted or not.
    """

    is_first: Callable[[], bool]
    others: bool
    adapters: tuple[Any, ...]
    first: Gathered
    second: Gathered
    n_seen: int = 0
    _taken_in: dict[tuple[Any, ...], StorageWeakRef] = field(default_factory=dict)

    def gathered(self, arguments: dict[str, Any]) -> Gathered | None:
        """The sums to which the forward that begins is to be added; None where it is not to be counted."""
        first = self.is_first() and not takes_cache(arguments)
        if not first and not self.others:
            return None
        tokens = next((arguments[name] for name in INPUTS if isinstance(arguments.get(name), Tensor)), None)
        if tokens is not None and self._is_again(tokens, first):
            return None
        return self.first if first else self.second

    def _is_again(self, tokens: Tensor, first: bool) -> bool:
        """Whether a forward of this kind has taken in this very memory, with what is in it now."""
        if tokens.is_inference():
            return False  # it does not tell whether it has been written to since
        storage = tokens.untyped_storage()
        place = (storage._cdata, tokens.storage_offset(), tokens.shape, tokens.stride(), tokens._version, first)
        before = self._taken_in.get(place)
        if before is not None and not before.expired():  # type: ignore[no-untyped-call]
            return True
        self._taken_in[place] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        return False
