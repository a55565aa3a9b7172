"""What the host asks of a GPU for a batch: counted with the adapter as it is, on the stand-in, above the SIMT shim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from cone_kernels import backends
from cone_kernels.kernels import cuda
from cone_kernels.kernels.cuda import matrices, moments
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.sentence_batch import SentenceBatch
from tests.support import simt_build
from tests.support.simt_cuda import launches, simt_cuda  # noqa: F401 - one is a fixture
from tests.support.stand_in_gpu import Work, stand_in_gpu

pytestmark = pytest.mark.usefixtures("one_thread", "simt_cuda")

# Calls of the extension that launch nothing, and operations that only find memory.
NO_LAUNCH = {
    *(f"kernel {name}" for name in ("warp_moments_workspace", "second_moment_workspace")),
    *("kernel most_shared_memory", "aten.empty", "aten.empty_like", "aten.new_empty"),
}


class _Counted:
    """The extension, whose calls are counted among the launches."""

    def __init__(self, extension: ModuleType, work: Work) -> None:
        self._extension, self._work = extension, work

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._extension, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            self._work.launches[f"kernel {name}"] += 1
            return found(*args, **options)

        return call


@pytest.fixture
def work() -> Iterator[Work]:
    # What is patched here goes before what the stand-in has patched.
    with stand_in_gpu() as found, pytest.MonkeyPatch.context() as patched:
        for adapter in (moments, matrices):
            patched.setattr(adapter, "_cuda", _Counted(simt_build.cuda_module(), found))
            patched.setattr(adapter, "queue_of", lambda x: (0, 0))
        patched.setattr(backends, "kernel", lambda op, backend: getattr(cuda, op))
        patched.setattr(backends, "resolve", lambda *_: backends.Backend.CUDA)
        yield found


def launches_of_a_batch(work: Work, n_layers: int, n_sentences: int, **options: Any) -> Counter[str]:
    state = ConeState.empty(range(n_layers), 24, device="cuda", **options)
    hidden = [torch.randn(n_sentences, 12, 24).to("cuda") for _ in range(n_layers)]
    mask = torch.arange(12) < torch.randint(1, 13, (n_sentences, 1))
    for batch in range(2):  # the first makes what is kept
        work.launches.clear()
        work.waits.clear()
        ids = torch.arange(n_sentences) + n_sentences * batch
        state.add(SentenceBatch.of(hidden[0], mask.to("cuda", non_blocking=True), None, ids), hidden, range(n_layers))
    assert not work.waits
    return Counter({name: n for name, n in work.launches.items() if name not in NO_LAUNCH})


def test_a_batch_takes_as_many_launches_whatever_the_number_of_layers(work: Work) -> None:
    few, many = (launches_of_a_batch(work, n_layers, 20) for n_layers in (2, 25))
    assert few == many
    kernels = {name: n for name, n in many.items() if name.startswith("kernel")}
    assert kernels == {"kernel warp_moments": 1}
    assert sum(many.values()) <= 12


@pytest.mark.parametrize("n_layers", [1, 25])
def test_both_levels_of_all_layers_take_six_kernels(work: Work, n_layers: int) -> None:
    state = ConeState.empty(range(n_layers), 24, device="cuda")
    hidden = [torch.randn(20, 12, 24).to("cuda") for _ in range(n_layers)]
    batch = SentenceBatch.of(hidden[0], torch.ones(20, 12, dtype=torch.bool).to("cuda"), None, torch.arange(20))
    before = launches()
    state.add(batch, hidden, range(n_layers))
    assert launches() - before == 6


def test_second_moments_of_all_layers_are_one_product(work: Work) -> None:
    few, many = (launches_of_a_batch(work, n_layers, 300, second_moment=True) for n_layers in (2, 7))
    assert few == many
    assert many["kernel second_moment"] == 1
    assert sum(many.values()) <= 50
