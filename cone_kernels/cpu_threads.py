"""How many CPU threads torch takes: a number that decides the last bits of matrix products of few rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """So many threads, and those of before again afterwards; None leaves them.

    Example:
        >>> with cpu_threads(1):
        ...     x @ y
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
