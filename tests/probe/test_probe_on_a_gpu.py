"""What a probe asks of a GPU, and when its host waits for it: counted on the stand-in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.state.cone_state import Added, ConeState
from tests.support.recording_probe import probed, same
from tests.support.stand_in_gpu import Work, stand_in_gpu
from tests.support.tiny_models import ToyModel, tiny_batch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Work]:
    with stand_in_gpu() as work:
        yield work


def on_gpu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to("cuda") for name, value in batch.items()}


def work_of_a_batch(work: Work, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Counter[str], Counter[str]]:
    work.launches.clear()
    work.waits.clear()
    with torch.inference_mode():
        model(**batch)
    return work.launches.copy(), work.waits.copy()


@pytest.mark.parametrize("n_blocks", [3, 24])
@pytest.mark.parametrize("mask", [torch.int64, torch.bool, None])
def test_what_a_batch_takes_beside_the_sums(
    gpu: Work, monkeypatch: pytest.MonkeyPatch, n_blocks: int, mask: torch.dtype | None
) -> None:
    def add(state: ConeState, batch: Any, hidden: list[Tensor], layers: list[int]) -> Added:
        assert batch.groups.device == batch.sentence_ids.device == hidden[0].device
        return Added(torch.empty(0), torch.empty(0))

    monkeypatch.setattr(ConeState, "add", add)
    model = ToyModel()
    model.blocks.extend(nn.Linear(8, 8) for _ in range(n_blocks - 3))
    model.to("cuda")
    batch = on_gpu(tiny_batch())
    batch = {"input_ids": batch["input_ids"]} | (
        {} if mask is None else {"attention_mask": batch["attention_mask"].to(mask)}
    )
    bare, _ = work_of_a_batch(gpu, model, batch)
    with ConeProbe(model) as probe, torch.inference_mode():
        model(**batch)  # finds the layers
        launches, waits = work_of_a_batch(gpu, model, batch)
    assert probe.n_sentences == 10
    # The sentence ids and their groups go to the GPU together; a mask of integers becomes one of bool, and goes to the
    # host, which waits for it once the forward is through; where there is no mask one is made.
    wanted = {torch.int64: {"aten._to_copy": 3}, torch.bool: {"aten._to_copy": 1}}.get(
        mask, {"aten._to_copy": 1, "aten.ones": 1}
    )
    assert launches - bare == wanted
    assert waits == ({"event": 1} if mask is torch.int64 else {})


def test_a_mask_of_other_values_is_found_before_anything_is_added() -> None:
    model = ToyModel().to("cuda")
    batches = [on_gpu(tiny_batch(seed=seed)) for seed in (1, 2)]
    wanted = probed(model, *batches)
    for wrong_in in (torch.int64, torch.int32, torch.uint8, torch.uint16):
        for training in (False, True):
            with ConeProbe(model.train(training)) as probe, torch.no_grad():
                model(**batches[0])
                for value in (2, -1 if wrong_in.is_signed else 255):
                    mask = batches[0]["attention_mask"].clone()
                    mask[3, 1] = value
                    before = probe.state.fingerprint()
                    with pytest.raises(ValueError, match=r"attention_mask: got values other than 0 and 1.*next_batch"):
                        model(batches[0]["input_ids"], attention_mask=mask.to(wrong_in))
                    assert probe.state.fingerprint() == before
                model(**batches[1])
            assert same(probe.state, wanted)
    with pytest.raises(ValueError, match="mask: got values other than 0 and 1"):
        ConeProbe(model).next_batch(mask=mask)


def test_the_mask_is_that_of_before_the_forward() -> None:
    """A model may write to its mask; what counts is what it was given."""

    class Overwrites(ToyModel):
        def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
            mask.fill_(7)
            return hidden

    found, wanted = (probed(kind().to("cuda"), on_gpu(tiny_batch())) for kind in (Overwrites, ToyModel))
    assert found.token.fingerprint() == wanted.token.fingerprint()
    assert found.sentence.fingerprint() == wanted.sentence.fingerprint()


@pytest.mark.parametrize("mask", [torch.int64, torch.bool])
def test_in_a_capture_the_host_looks_at_no_value(gpu: Work, monkeypatch: pytest.MonkeyPatch, mask: torch.dtype) -> None:
    model, batch = ToyModel().to("cuda"), on_gpu(tiny_batch())
    batch = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].to(mask)}
    with ConeProbe(model) as probe:
        work_of_a_batch(gpu, model, batch)  # finds the layers
        before = probe.state.token.count.cpu().sum(1)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        _, waits = work_of_a_batch(gpu, model, batch)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert not waits
        assert torch.equal(probe.state.token.count.cpu().sum(1), 2 * before)
