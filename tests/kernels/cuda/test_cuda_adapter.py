"""What is between the ops and the CUDA kernels: devices, and what captured graphs hold on to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.devices import on_its_device
from tests.support.simt_cuda import simt_cuda

__all__ = ["simt_cuda"]


class OnGpu(Tensor):
    """Says that it is on the second GPU."""

    is_cuda = True
    device = torch.device("cuda:1")


def test_kernels_run_with_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    @contextmanager
    def device(which: torch.device) -> Iterator[None]:
        entered.append(which)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", device)
    kernel = on_its_device(lambda x, factor: entered.append(factor))
    x = torch.zeros(2).as_subclass(OnGpu)
    for first in (x, [x, x], torch.zeros(2)):
        kernel(first, 3)
    assert entered == [torch.device("cuda:1"), 3, "left", torch.device("cuda:1"), 3, "left", 3]


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_every_gpu_kernel_is_run_so(simt_cuda: None, backend: str) -> None:
    for op in backends.ops_of(backends.Backend(backend)):
        kernel = backends.kernel(op, backend)
        assert kernel is on_its_device(kernel.__wrapped__)  # type: ignore[attr-defined]


def test_what_a_captured_graph_reads_is_kept(simt_cuda: None) -> None:
    from cone_kernels.kernels.cuda import matrices as cuda_matrices

    kept = [cuda_matrices._start(8, d, torch.device("cpu")) for d in range(8, 58)]
    again = [cuda_matrices._start(8, d, torch.device("cpu")) for d in range(8, 58)]
    assert all(one is other for one, other in zip(kept, again, strict=True))
