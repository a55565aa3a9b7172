"""States, formulas and integrations whose sums are on a GPU, on the stand-in: the numbers of the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels import isotropy_loss, mean_pairwise_cosine, metrics, row_moments, second_moment
from cone_kernels.axes import axes
from cone_kernels.centering import Centering
from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.torchmetrics import MeanPairwiseCosine
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.layer_points import find_layer_points
from cone_kernels.state.cone_state import ConeState
from tests.support.stand_in_gpu import Work, stand_in_gpu
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

GPU = torch.device("cuda:0")
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]] * 8)
SPECIAL = torch.zeros_like(MASK).index_fill_(1, torch.tensor([0]), 1)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Work]:
    with stand_in_gpu() as work:
        yield work


def hidden_states() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(24, 4, 12, generator=generator) + layer for layer in range(3)]


def state_on(device: str, *, poolings: str | tuple[str, ...] = "all") -> ConeState:
    state = ConeState.empty(range(3), 12, second_moment=True, poolings=poolings, device=device)
    layers, mask, special = [layer.to(device) for layer in hidden_states()], MASK.to(device), SPECIAL.to(device)
    state.update(layers, mask, special=special)
    state.update(layers, mask, special=special, sentence_ids=torch.arange(24) + 24)
    return state


def test_a_state_is_that_of_the_cpu_merged_saved_and_read_again(tmp_path: Path) -> None:
    gpu, cpu = state_on("cuda"), state_on("cpu")
    assert gpu.sentence.unit_sum.device == GPU
    assert gpu.fingerprint() == cpu.fingerprint() == gpu.on_cpu().fingerprint()
    assert gpu.on_cpu().sentence.unit_sum.device == torch.device("cpu")
    assert cpu.on_cpu() is cpu
    assert gpu.merge(gpu).fingerprint() == cpu.merge(cpu).fingerprint()
    gpu.save(tmp_path / "state")
    assert ConeState.load(tmp_path / "state").fingerprint() == cpu.fingerprint()


def test_every_formula_takes_it() -> None:
    gpu, cpu = state_on("cuda"), state_on("cpu")
    for name, value in metrics.first_order(cpu).items():
        torch.testing.assert_close(metrics.first_order(gpu)[name].cpu(), value, rtol=1e-12, atol=1e-12)
    assert cone_scalars(gpu, token=True, pooling_gap=True) == pytest.approx(
        cone_scalars(cpu, token=True, pooling_gap=True), nan_ok=True
    )
    one, other = gpu.sentence.select(1), cpu.sentence.select(1)
    assert metrics.geometry(one) == metrics.geometry(other)
    assert torch.equal(axes(gpu.sentence, 2).centered.vectors, axes(cpu.sentence, 2).centered.vectors)
    for name in ("effective_rank", "participation_ratio", "iso_score"):
        formula = getattr(metrics, name)
        torch.testing.assert_close(formula(metrics.covariance(one)).cpu(), formula(metrics.covariance(other)))


@pytest.mark.parametrize("method", ["mean", "all-but-the-top", "whitening"])
def test_a_centering_fitted_there_maps_vectors_of_either_device(method: str) -> None:
    gpu, cpu = (Centering.fit(state_on(device), method=method, layer=1) for device in ("cuda", "cpu"))  # type: ignore[arg-type]
    assert gpu == cpu
    x = hidden_states()[0][:, 0]
    torch.testing.assert_close(gpu.apply(x.to("cuda")).cpu(), cpu.apply(x))
    assert gpu.apply(x).device == torch.device("cpu")


def test_metric_and_loss() -> None:
    x = hidden_states()[1][:, 0]
    metric, wanted = MeanPairwiseCosine(12).to("cuda"), MeanPairwiseCosine(12)
    for part in x.split(7):
        metric.update(part.to("cuda"))
        wanted.update(part)
    assert float(metric.compute()) == pytest.approx(float(wanted.compute()), rel=1e-12)
    assert float(metric.stderr()) == pytest.approx(float(wanted.stderr()), rel=1e-12)
    with torch.no_grad():
        assert float(isotropy_loss(x.to("cuda"))) == pytest.approx(float(isotropy_loss(x)), rel=1e-12)


@pytest.mark.parametrize("mask_on", ["cpu", "cuda"])
@pytest.mark.parametrize("special_on", ["cpu", "cuda"])
def test_a_probe_takes_masks_and_special_tokens_of_either_device(mask_on: str, special_on: str) -> None:
    """The model's own attention mask is on the GPU; what `next_batch` is told may be anywhere."""
    model, ids = tiny_model("bert").eval(), torch.randint(4, 60, MASK.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for device in ("cpu", "cuda"):
        model.to(device)
        on = {"cpu": "cpu", "cuda": "cuda"} if device == "cuda" else dict.fromkeys(("cpu", "cuda"), "cpu")
        with ConeProbe(model, poolings=["mean_without_special", "cls"]) as probe, torch.inference_mode():
            for first in (0, 24):
                probe.next_batch(
                    torch.arange(24) + first,
                    mask=MASK.bool().to(on[mask_on]),
                    special=SPECIAL.to(on[special_on]),
                    repeats=(torch.arange(24) == 5).to(on[mask_on]),
                )
                model(input_ids=ids.to(device), attention_mask=MASK.to(device))
        found[device] = cone_scalars(probe.state, token=True)
        assert int(probe.state.pooled("cls").count[0].sum()) == 46
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-4, abs=1e-6)


def test_finding_the_layers_waits_for_the_device_twice(gpu: Work) -> None:
    """For the first row's mask and for all numbers that are compared; one more is the model's look at its own mask."""
    model = tiny_model("bert").eval().to("cuda")
    batch = {"input_ids": torch.full((2, 9), 5).to("cuda"), "attention_mask": torch.ones(2, 9).long().to("cuda")}
    gpu.waits.clear()
    assert len(find_layer_points(model, batch).points) == 4
    assert sum(gpu.waits.values()) <= 3


@pytest.mark.parametrize("op", [mean_pairwise_cosine, row_moments, second_moment])
def test_float64_is_refused_with_what_is_taken_there(op: Callable[..., Any]) -> None:
    message = "x: got dtype float64 on device cuda:0; it must be one of float32, bfloat16, float16 there"
    with pytest.raises(TypeError, match=message):
        op(torch.zeros(3, 4, dtype=torch.float64, device=GPU))
