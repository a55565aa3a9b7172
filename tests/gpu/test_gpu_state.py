"""The state, the probe and CUDA graphs on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from moment_cases import assert_sums_close, normal
from torch import Tensor

from cone_kernels import ConeProbe, ConeState
from cone_kernels.kernels.segments import Segments
from cone_kernels.ops.top_eigenvectors import top_eigenvectors

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
BACKENDS = ["triton", "cuda"]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """An error where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def batches(count: int, layers: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 13, (40,), generator=generator)
        mask = torch.arange(12) < lengths[:, None]
        hidden = normal(layers, 40, 12, 64, dtype=torch.bfloat16, seed=seed)
        made.append((hidden.to(GPU), mask.to(GPU), torch.arange(seed * 40, seed * 40 + 40).to(GPU)))
    return made


def on_cpu(state: ConeState) -> dict[str, Tensor]:
    settled = state.settled("cpu")
    return {
        f"{level}.{name}": value
        for level in ("sentence", "token")
        for name, value in getattr(settled, level).sums.items()
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("second", [False, True])
def test_state_on_the_gpu_equals_the_cpu(backend: str, second: bool) -> None:
    ours = ConeState.empty(range(3), 64, second_moment=second, backend=backend, device=GPU)
    plain = ConeState.empty(range(3), 64, second_moment=second, backend="reference")
    for hidden, mask, ids in batches(3):
        ours.update(list(hidden), mask, sentence_ids=ids)
        plain.update(list(hidden.cpu()), mask.cpu(), sentence_ids=ids.cpu())
    # Pooled vectors are float32 on both: the sums of what is made of them differ by their rounding.
    assert_sums_close(on_cpu(ours), on_cpu(plain), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_does_not_wait_for_the_device(backend: str, request: pytest.FixtureRequest) -> None:
    state = ConeState.empty(range(3), 64, backend=backend, device=GPU)
    made = batches(3)
    for hidden, mask, ids in made:
        state.update(list(hidden), mask, sentence_ids=ids)
    from cone_kernels.sentence_batch import SentenceBatch

    checked = [(SentenceBatch.of(hidden[0], mask, None, ids), hidden) for hidden, mask, ids in made]
    request.getfixturevalue("no_waiting")
    for batch, hidden in checked:
        state.add(batch, list(hidden), state.layers)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_in_a_cuda_graph(backend: str) -> None:
    made = batches(4)
    static = [tensor.clone() for tensor in made[0]]
    state = ConeState.empty(range(3), 64, backend=backend, device=GPU)
    plain = ConeState.empty(range(3), 64, backend=backend, device=GPU)

    def update() -> None:
        state.update(list(static[0]), static[1], sentence_ids=static[2])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        update()  # compiles, and allocates what stays
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    for batch in made[1:]:
        for target, source in zip(static, batch, strict=True):
            target.copy_(source)
        graph.replay()
    for hidden, mask, ids in made:
        plain.update(list(hidden), mask, sentence_ids=ids)
    got, wanted = on_cpu(state), on_cpu(plain)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_eigenvectors_in_a_cuda_graph(backend: str) -> None:
    from cone_kernels import backends

    covariance = torch.diag(torch.linspace(2, 1, 96)).expand(4, 96, 96).contiguous().to(GPU)
    kernel = backends.kernel("top_eigenvectors", backend)
    kernel(covariance, True, False, 2, 1e-8, 20)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, *_ = kernel(covariance, True, False, 2, 1e-8, 20)
    covariance.mul_(2)
    graph.replay()
    wanted = top_eigenvectors(covariance=covariance, k=2, backend=backend).values
    torch.testing.assert_close(values, wanted, rtol=1e-12, atol=0)


def test_segments_are_cut_without_waiting(no_waiting: None) -> None:
    Segments.of(torch.arange(5000, device=GPU) % 64, 5000, 64, 1, 60_000)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probe_of_a_model_on_the_gpu(backend: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
    model = transformers.BertModel(config).eval().to(GPU)
    ids = torch.randint(5, 500, (20, 12), generator=torch.Generator().manual_seed(0)).to(GPU)
    mask = (torch.arange(12) < torch.arange(1, 21)[:, None] % 12 + 1).to(GPU)
    with torch.no_grad(), ConeProbe(model, backend=backend) as probe:
        model(input_ids=ids, attention_mask=mask.long())
        hidden = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    wanted = ConeState.empty(range(4), 64, backend="reference")
    for first in (0, 20):
        wanted.update([layer.cpu() for layer in hidden], mask.cpu(), sentence_ids=torch.arange(20) + first)
    assert_sums_close(on_cpu(probe.state), on_cpu(wanted), 2e-6)
