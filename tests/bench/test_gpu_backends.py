"""What is built on the ops, with the GPU backends: the state, the probe, an experiment. Without a GPU they run in
Triton's interpreter and on the shim."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cone_kernels import ConeProbe, ConeState, backends, isotropy_loss
from cone_kernels.state import pending_rows
from tests.support.moment_cases import assert_sums_close
from tests.support.recording_probe import hidden_states
from tests.support.simt_cuda import simt_cuda
from tests.support.tiny_models import tiny_batch, tiny_model
from tests.support.triton_interpreter import faithful_interpreter

__all__ = ["simt_cuda"]
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/kernels/gpu has the same on a real GPU"),
]


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        request.getfixturevalue("simt_cuda")
        yield "cuda"
    else:
        with faithful_interpreter():
            yield "triton"


def sums_of(state: ConeState) -> dict[str, Tensor]:
    parts = {"sentence": state.sentence, "token": state.token, **state.poolings}
    return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.sums.items()}


def assert_states_close(got: ConeState, sums: dict[str, Tensor], wanted: ConeState) -> None:
    """Sums of float32 pooled vectors: of these the backends may differ by a rounding."""
    for name, value in sums_of(wanted).items():
        assert_sums_close({"sum": sums[name]}, {"sum": value}, 2e-6)
    assert torch.equal(got.first_left_out, wanted.first_left_out)


def test_a_probed_model(backend: str) -> None:
    model, batches = tiny_model("bert"), [tiny_batch(seed=seed, sentences=4) for seed in (1, 2)]

    def probed(name: str) -> ConeState:
        options = {"second_moment": True, "unit_second_moment": True}
        with ConeProbe(model, backend=name, **options) as probe, torch.no_grad():
            for batch in batches:
                model(**batch)
        return probe.state

    with backends.record() as runs:
        state = probed(backend)
        sums = sums_of(state)  # with the products of the rows that wait
    levels = {"cuda": ("pool_and_row_moments",), "triton": ("pool_moments", "row_moments")}[backend]
    assert set(runs) == {(op, backends.Backend(backend)) for op in (*levels, "second_moment")}
    assert_states_close(state, sums, probed("cpu"))


# CUDA takes rows of 12 by blocks, and of 16 by warps.
@pytest.mark.parametrize(("backend", "d"), [("triton", 12), ("cuda", 12), ("cuda", 16)], indirect=["backend"])
def test_left_out_and_full_blocks(backend: str, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_rows, "BLOCK_ROWS", 32)
    generator = torch.Generator().manual_seed(0)
    states = {name: ConeState.empty(range(2), d, second_moment=True, backend=name) for name in (backend, "cpu")}
    for step in range(4):
        hidden = [torch.randn(10, 3, d, generator=generator) + 0.5 for _ in range(2)]
        mask = torch.rand(10, 3, generator=generator) < 0.7
        mask[[2, 7]] = torch.tensor([[False], [True]])
        hidden[0][3], hidden[1][5, 1], hidden[1][7, 0, 2] = 0, 0, torch.nan
        for state in states.values():
            state.update(hidden, mask, sentence_ids=torch.arange(10) + 10 * step)
    assert_states_close(states[backend], sums_of(states[backend]), states["cpu"])
    assert bool(states[backend].first_left_out[:, 0].lt(10).all())


def test_an_isotropy_loss(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model("bert"), tiny_batch()
    gradients = []
    for name in (backend, "reference"):
        monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, name)
        hidden = [layer.clone().requires_grad_() for layer in hidden_states(model, batch)[-2:]]
        loss = isotropy_loss(hidden, batch["attention_mask"], target=0.0, layers=[0, 1])
        gradients.append(torch.autograd.grad(loss, hidden))
    for got, wanted in zip(*gradients, strict=True):
        assert float((got - wanted).abs().max()) <= 4e-7 * float(wanted.abs().max())
