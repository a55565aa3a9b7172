"""What a probe adds to, and what it could not count."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cone_kernels.probe.side_stream import SideStream
from cone_kernels.state.cone_state import ConeState

logger = logging.getLogger(__name__)

_MOST_REASONS = 16  # that are told apart


@dataclass(eq=False)
class Gathered:
    """Sums to which a probe adds.

    Attributes:
        state: the sums; None before the first sentence.
        n_sentences: how many sentences they have seen.
        side: where on a GPU they are added to.
    """

    state: ConeState | None = None
    n_sentences: int = 0
    side: SideStream = field(default_factory=SideStream)

    @contextmanager
    def adding(
        self, hidden: Sequence[Tensor], aside: bool, empty: Callable[[torch.device], ConeState]
    ) -> Iterator[ConeState]:
        """Runs a block that adds layers to the state.

        A state is added to on one stream, that of its first layers: on the side stream where those came while a forward
        went on, else on the caller's of then. What the state lets go of could otherwise be used again while it is still
        read.

        Args:
            hidden: the layers, all of one device.
            aside: the forward may go on meanwhile, as nothing writes to them.
            empty: makes the state where there is none yet.
        """
        device = hidden[0].device
        if self.state is None:
            self.side.begin(device, aside)
        # The sums must not become bfloat16 under the user's autocast, nor inference tensors under inference_mode.
        exact = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
        with torch.inference_mode(False), torch.no_grad(), exact, self.side.beside(hidden):
            if self.state is None:
                self.state = empty(device)
            yield self.state
        if not aside:
            self.side.join()

    def clear(self) -> None:
        """Begins anew in the same memory."""
        if self.state is not None:
            self.state.clear_()
        self.n_sentences = 0

    def forget(self) -> None:
        """Begins anew, in other memory: the state stays with whoever holds it."""
        self.state, self.n_sentences = None, 0


class Skipped:
    """Counts what could not be done by reason, and says the first of each reason in the log.

    Examples:
        >>> skipped = Skipped("a forward of BertModel is not counted")
        >>> skipped.note(ValueError("attention_mask: got shape (4, 9); it must be (4, 1) as the tokens"))
        >>> skipped.counts
        Counter({'attention_mask: got shape (#, #); it must be (#, #) as the tokens': 1})
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: Counter[str] = Counter()

    def note(self, error: BaseException, *, lost: int = 0) -> None:
        """Counts an error; those that differ in their numbers alone have one reason.

        Args:
            error: why it could not be done.
            lost: how many sentences that had been counted before are lost with it.
        """
        said = str(error) or type(error).__name__
        reason = re.sub(r"\d+", "#", said)
        if reason not in self.counts and len(self.counts) >= _MOST_REASONS:
            reason = "other"
        self.counts[reason] += 1
        if self.counts[reason] == 1 or lost:
            with_it = f"; {lost} sentences that were in the same sums are lost with it" if lost else ""
            logger.warning("%s: %s%s (said once)", self.what, said, with_it)
