from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.places import SNLI

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where there is no GPU, Triton kernels run in Triton's interpreter; it is chosen when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """What has been imported by now stays: looking through it for garbage again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """What lives in cycles is freed at the exit, where compiled modules look for what was left over."""
    gc.unfreeze()


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn, in force for the test."""
    from cone_kernels import _cpu

    if request.param not in _cpu.supported_isas():
        pytest.skip(f"{request.param} is not built in or not known to this processor")
    before = _cpu.isa()
    _cpu.force_isa(request.param)
    assert _cpu.isa() == request.param
    yield request.param
    _cpu.force_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's thread count back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """Threads cost tiny products far more time than they save."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def snli() -> Path:
    """The SNLI dev set, which lies beside a checkout."""
    if not SNLI.exists():
        pytest.skip(f"the SNLI dev set is not beside this checkout ({SNLI.name})")
    return SNLI
