"""Work on a GPU that goes on while a model's forward runs on another stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """The stream of a piece of work on each GPU; on a CPU, and while a CUDA graph is captured, it is done at once.

    That is one more stream, unless `begin` says that it is the one that is current then.

    Examples:
        >>> side = SideStream()
        >>> with side.beside([hidden]):
        ...     state.update([hidden])
        >>> side.join()  # what follows on this stream sees the update
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._begun: set[torch.device] = set()

    def begin(self, device: torch.device, aside: bool) -> None:
        """Chooses the stream of the work from here on: one beside the current one, or the current one itself."""
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return
        if aside:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        else:
            self._streams[device] = torch.cuda.current_stream(device)

    @contextmanager
    def beside(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Runs a block on the work's stream once `tensors`, all of one device, are there; the current stream goes on.

        Until `join` nothing may write to the tensors. Their memory is not used again before they have been read.
        """
        device = tensors[0].device
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        if stream == torch.cuda.current_stream(device):
            yield
            return
        # This also keeps memory that was freed on the current stream from being used on the side stream too early.
        stream.wait_stream(torch.cuda.current_stream(device))
        self._begun.add(device)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            for tensor in tensors:
                tensor.record_stream(stream)

    def join(self) -> None:
        """Lets what follows on the current stream of each GPU wait for the work so far; the host does not wait."""
        for device in self._begun:
            torch.cuda.current_stream(device).wait_stream(self._streams[device])
        self._begun.clear()
