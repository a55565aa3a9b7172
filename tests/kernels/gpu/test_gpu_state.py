"""The state, the probe and CUDA graphs on a real GPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from cone_kernels import ConeProbe, ConeState, backends
from cone_kernels.kernels.segments import Segments
from cone_kernels.probe import forward as probed_forward
from cone_kernels.probe.side_stream import SideStream
from cone_kernels.state.sentence_batch import SentenceBatch
from tests.support.gpu_memory import Blocks, apart, no_waits
from tests.support.moment_cases import assert_sums_close, normal

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
# A state's layers: views of one tensor, or each in memory of its own, as a model leaves them.
SPACINGS = {"even": list, "apart": apart}


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


@pytest.mark.parametrize("second", [False, True])
def test_state_on_the_gpu_equals_the_cpu(backend: str, second: bool) -> None:
    ours = ConeState.empty(range(3), 64, second_moment=second, backend=backend, device=GPU)
    plain = ConeState.empty(range(3), 64, second_moment=second, backend="reference")
    for hidden, mask, ids in batches(3):
        ours.update(list(hidden), mask, sentence_ids=ids)
        plain.update(list(hidden.cpu()), mask.cpu(), sentence_ids=ids.cpu())
    # Pooled vectors are float32 on both: the sums of what is made of them differ by their rounding.
    assert_sums_close(on_cpu(ours), on_cpu(plain), 1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_an_added_batch_is_not_waited_for(backend: str, spacing: str) -> None:
    state = ConeState.empty(range(3), 64, backend=backend, device=GPU)
    made = [(SPACINGS[spacing](hidden), mask, ids) for hidden, mask, ids in batches(3)]
    for hidden, mask, ids in made:
        state.update(hidden, mask, sentence_ids=ids)
    checked = [(SentenceBatch.of(hidden[0], mask, None, ids), hidden) for hidden, mask, ids in made]
    with no_waits():
        for batch, hidden in checked:
            state.add(batch, hidden, state.layers)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_an_update_in_a_cuda_graph(backend: str, spacing: str) -> None:
    made = batches(4)
    static, static_mask, static_ids = SPACINGS[spacing](made[0][0].clone()), made[0][1].clone(), made[0][2].clone()
    state = ConeState.empty(range(3), 64, backend=backend, device=GPU)
    plain = ConeState.empty(range(3), 64, backend=backend, device=GPU)

    def update() -> None:
        state.update(static, static_mask, sentence_ids=static_ids)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        update()  # compiles, and allocates what stays
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    kept = []
    for hidden, mask, ids in made[1:]:
        for layer, source in zip(static, hidden, strict=True):
            layer.copy_(source)
        static_mask.copy_(mask)
        static_ids.copy_(ids)
        # Where the graph reads host memory that has been given back, it now reads this.
        kept += [torch.zeros(numbers, dtype=torch.int64, pin_memory=True) for numbers in range(1, 65)]
        graph.replay()
    for hidden, mask, ids in made:
        plain.update(list(hidden), mask, sentence_ids=ids)
    got, wanted = on_cpu(state), on_cpu(plain)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


def test_eigenvectors_in_a_cuda_graph(backend: str) -> None:
    diagonal, steps = torch.linspace(2, 1, 96), 64  # it takes 33
    covariance = torch.diag(diagonal).expand(4, 96, 96).contiguous().to(GPU)
    kernel = backends.kernel("top_eigenvectors", backend)
    kernel(covariance, True, False, 2, 1e-8, steps)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, _, _, iterations, _, converged, _ = kernel(covariance, True, False, 2, 1e-8, steps)
    covariance.mul_(2)
    graph.replay()
    assert bool(converged.all())
    assert int(iterations.max()) < steps
    wanted = 2 * diagonal[:2].double().expand(4, 2)
    torch.testing.assert_close(values.cpu(), wanted, rtol=1e-12, atol=0)


def test_segments_are_cut_without_waiting(no_waiting: None) -> None:
    Segments.of(torch.arange(5000, device=GPU) % 64, 5000, 64, 1, 60_000)


def ids_and_mask(seed: int, sentences: int = 20, tokens: int = 12) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 500, (sentences, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(tokens) < torch.arange(1, sentences + 1)[:, None] % tokens + 1
    return ids.to(GPU), mask.to(GPU)


def test_a_probed_forward_does_not_wait_for_the_device(backend: str) -> None:
    model = Blocks(layers=5, dim=64).eval().to(GPU)
    ids, mask = ids_and_mask(0, sentences=256)
    with torch.inference_mode(), ConeProbe(model, backend=backend, second_moment=True) as probe:
        hidden = model(ids, mask, output_hidden_states=True)["hidden_states"]  # finds the layers
        model(ids, mask)  # 512 sentences: the first product
        with no_waits():
            for _ in range(3):
                model(ids, mask)
    wanted = ConeState.empty(range(6), 64, backend="reference", second_moment=True)
    for batch in range(5):
        numbers = torch.arange(256) + 256 * batch
        wanted.update([layer.cpu() for layer in hidden], mask.cpu(), sentence_ids=numbers)
    assert_sums_close(on_cpu(probe.state), on_cpu(wanted), 2e-6)


def test_a_side_stream_changes_no_bit(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Blocks(layers=24, dim=512).eval().to(GPU, torch.bfloat16)
    made = [ids_and_mask(seed, sentences=256, tokens=32) for seed in range(6)]
    layer_bytes = 256 * 32 * 512 * 2
    monkeypatch.setattr(probed_forward, "_HELD_BYTES", {"cuda": 3 * layer_bytes})  # several additions in a forward

    def probed() -> ConeProbe:
        with torch.inference_mode(), ConeProbe(model, backend=backend, second_moment=True) as probe:
            for ids, mask in made:
                output = model(ids, mask)
                output["last_hidden_state"].fill_(torch.nan)
                del output
                # Memory of the layers, where it were given away too early.
                churn = [torch.full((layer_bytes,), 255, dtype=torch.uint8, device=GPU) for _ in range(30)]
                del churn
        return probe

    beside = probed()
    assert len(beside._gathered.side._streams) == 1
    with monkeypatch.context() as patch:
        patch.setattr(SideStream, "beside", lambda self, tensors: nullcontext())
        at_once = probed()
    got, wanted = on_cpu(beside.state), on_cpu(at_once.state)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


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
