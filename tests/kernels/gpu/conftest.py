from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cone_kernels import backends
from tests.support.gpu_memory import no_waits


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each GPU backend in turn; `make gpu` fails where one is missing, its tests only say why they cannot be run."""
    capability = backends.capabilities()[backends.Backend(request.param)]
    if not capability.available:
        pytest.skip(f"{request.param}: {capability.reason}")
    return str(request.param)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """An error where the host waits for the device."""
    with no_waits():
        yield


@pytest.fixture(autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """What a test held is free for the tests in the processes beside it."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
