"""ConeWatch in loops of one's own, against plain recomputation from the weights of each step."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DataCollatorWithFlattening

from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.step_means import StepMeans
from cone_kernels.integrations.watch import ConeWatch
from cone_kernels.state.cone_state import ConeState
from tests.support.gloo_ranks import run_ranks
from tests.support.recording_probe import plain_anisotropy, probed
from tests.support.step_values import Sentence, sentences_of, step_values
from tests.support.tiny_checkpoints import word_tokenizer
from tests.support.tiny_models import LAYERS, PAD, tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**settings: Any) -> nn.Module:
    return tiny_model("bert", **NO_DROPOUT, **settings).train()


def close(got: dict[str, float], wanted: dict[str, float]) -> bool:
    assert set(got) == set(wanted)
    return got == pytest.approx(wanted, abs=1e-6)


def test_values_of_steps_are_each_of_their_own_weights() -> None:
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    watch = ConeWatch(every=2, token=True, pooling_gap=True)
    watch.attach(model)
    steps: list[list[Sentence]] = []
    for step in range(6):
        batches = [tiny_batch(seed=2 * step + part) for part in range(2)]  # two micro-batches
        if step % 2 == 0:
            steps.append([sentence for batch in batches for sentence in sentences_of(copy.deepcopy(model), batch)])
        watch.begin_step(step)
        for batch in batches:
            model(**batch).last_hidden_state.square().mean().backward()
        watch.end_step()
        optimizer.step()
    wanted = step_values(steps, token=True, pooling_gap=True)
    assert close(watch.take("training"), wanted)
    # Sums over the steps would be those of no model: many errors away.
    name = f"cone/L{LAYERS}/anisotropy"
    pooled = plain_anisotropy(torch.stack([one[LAYERS].mean(0) for step in steps for one in step]))
    assert abs(pooled - wanted[name]) > 5 * wanted[f"{name}_stderr"]
    assert watch.take("training") == {}
    watch.detach()
    assert watch.skipped == {}


def test_steps_of_unequal_size_have_no_group_in_common() -> None:
    generator = torch.Generator().manual_seed(0)
    steps: list[list[Sentence]] = [
        [(torch.randn(2, 4, generator=generator, dtype=torch.float64) + 0.5,) for _ in range(sentences)]
        for sentences in (3, 5, 4)
    ]
    means = StepMeans(token=True, pooling_gap=True)
    for step in steps:
        state = ConeState.empty([0], 4)
        hidden = torch.stack([tokens for (tokens,) in step])  # (B, T, D)
        state.update([hidden], torch.ones(len(step), 2, dtype=torch.bool))
        means.add(state, n_sentences=len(step))
    assert close(means.scalars(), step_values(steps, token=True, pooling_gap=True))


def test_the_error_of_a_mean_covers_it() -> None:
    """Of 200 windows of four steps, between which the truth moves: the errors are those that the means have."""
    generator = torch.Generator().manual_seed(0)
    windows = range(200)
    noise = torch.randn(len(windows), 4, 12, 1, 4, generator=generator)
    # Layers know nothing of each other: a window each, so that all are summed at once.
    values = StepMeans()
    for step in range(4):
        rows = noise[:, step] + 0.5 * (1 + step)  # (L, B, T, D)
        state = ConeState.empty([*windows], 4)
        state.update([*rows], torch.ones(12, 1, dtype=torch.bool))
        values.add(state, n_sentences=12)
    scalars = values.scalars()
    means = [scalars[f"cone/L{window}/anisotropy"] for window in windows]
    errors = [scalars[f"cone/L{window}/anisotropy_stderr"] for window in windows]
    ratio = (sum(error**2 for error in errors) / len(errors)) ** 0.5 / float(torch.tensor(means).std())
    assert 0.9 < ratio < 1.2


def test_steps_too_small_for_a_value_or_an_error() -> None:
    one, two = tiny_batch(sentences=1), tiny_batch(sentences=2)
    model = bert()
    watch = ConeWatch(every=1)
    watch.attach(model)
    name = f"cone/L{LAYERS}/anisotropy"
    for step, batch in enumerate((one, two, two, one)):
        watch.begin_step(step)
        model(**batch)
        watch.end_step()
    values = watch.take("training")
    assert values[name] == pytest.approx(step_values([sentences_of(model, two)])[name], abs=1e-6)
    assert values[f"{name}_stderr"] == pytest.approx(0, abs=1e-12)  # twice the same
    assert values[f"{name}_last"] != values[f"{name}_last"]
    watch.begin_step(4)
    model(**one)
    watch.end_step()
    assert all(value != value for value in watch.take("training").values())
    watch.detach()


def lora() -> nn.Module:
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query", "value"], lora_dropout=0.0)
    model = peft.get_peft_model(tiny_model("bert", **NO_DROPOUT), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.train()


@pytest.mark.parametrize("reference_first", [False, True])
def test_a_reference_that_is_the_model_without_its_adapter_is_not_counted(reference_first: bool) -> None:
    model = lora()
    batches = [tiny_batch(seed=1), tiny_batch(seed=2)]
    watch = ConeWatch(every=1)
    watch.attach(model)

    def reference() -> None:
        with torch.no_grad(), model.disable_adapter():
            for batch in batches:
                model(**batch)

    watch.begin_step(0)
    if reference_first:
        reference()
    loss = sum(model(**batch).last_hidden_state.mean() for batch in batches)
    if not reference_first:
        reference()
    loss.backward()
    watch.end_step()
    values = watch.take("training")
    watch.detach()
    assert close(values, step_values([[one for batch in batches for one in sentences_of(model, batch)]]))
    with model.disable_adapter():
        base = step_values([[one for batch in batches for one in sentences_of(model, batch)]])
    assert abs(values[f"cone/L{LAYERS}/anisotropy"] - base[f"cone/L{LAYERS}/anisotropy"]) > 0.005


@pytest.mark.parametrize("kind", ["re-entrant checkpoint", "features without gradients"])
def test_steps_without_a_forward_with_gradients_count_all_the_same(kind: str) -> None:
    model, batch = bert(), tiny_batch()
    weight = torch.ones((), requires_grad=True)
    watch = ConeWatch(every=1)
    watch.attach(model)
    watch.begin_step(0)
    if kind == "re-entrant checkpoint":
        checkpoint(lambda w: model(**batch).last_hidden_state * w, weight, use_reentrant=True).mean().backward()
    else:
        with torch.no_grad():
            features = model(**batch).last_hidden_state
        (features * weight).mean().backward()
    watch.end_step()
    assert close(watch.take("training"), step_values([sentences_of(model, batch)]))
    watch.detach()


def test_evaluations_are_apart_from_steps_from_each_other_and_from_all_else() -> None:
    model = bert()
    batches = [tiny_batch(seed=seed) for seed in range(8)]
    watch = ConeWatch(every=1)
    watch.attach(model)
    model(**batches[7])
    watch.begin_step(0)
    model(**batches[0])
    with watch.evaluating("a"):
        model(**batches[1])
        with watch.evaluating("b"):
            model(**batches[2])
        model(**batches[3])
    model(**batches[4])
    watch.end_step()
    model(**batches[7])
    found = watch.take("training"), watch.take("evaluation", "a"), watch.take("evaluation", "b")
    assert close(found[0], step_values([[one for at in (0, 4) for one in sentences_of(model, batches[at])]]))
    assert close(found[1], cone_scalars(probed(model, batches[1], batches[3])))
    assert close(found[2], cone_scalars(probed(model, batches[2])))
    assert watch.take("evaluation", "a") == {}
    watch.detach()


@pytest.mark.parametrize("layers", [[2], [-1], [0, -1], [3, 1]])
def test_layers_alone_are_gathered(layers: list[int]) -> None:
    model, batch = bert(), tiny_batch()
    watch = ConeWatch(every=1, layers=layers)
    watch.attach(model)
    watch.begin_step(0)
    model(**batch)
    watch.end_step()
    numbers = sorted(layer % (LAYERS + 1) for layer in layers)
    values = watch.take("training")
    assert close(values, step_values([sentences_of(model, batch)], layers=numbers))
    watch.detach()


class BiEncoder(nn.Module):
    """A wrapper whose forward has names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = bert()

    def forward(self, query: dict[str, Tensor], passage: dict[str, Tensor]) -> Tensor:
        return self.tower(**query).last_hidden_state.mean() - self.tower(**passage).last_hidden_state.mean()


@pytest.mark.parametrize("module", ["", "tower"])
def test_a_wrapper_with_names_of_its_own(module: str, caplog: pytest.LogCaptureFixture) -> None:
    model = BiEncoder()
    query, passage = tiny_batch(seed=1), tiny_batch(seed=2)
    watch = ConeWatch(every=1, module=module)
    watch.attach(model)
    watch.begin_step(0)
    model(query, passage).backward()
    watch.end_step()
    values = watch.take("training")
    watch.detach()
    if module:
        both = [*sentences_of(model.tower, query), *sentences_of(model.tower, passage)]
        assert close(values, step_values([both]))
        assert watch.skipped == {}
    else:
        assert values == {}
        assert list(watch.skipped.values()) == [1]
        assert "a forward of BiEncoder is not counted: input_ids or inputs_embeds: got none" in caplog.text


def test_strict_lets_what_goes_wrong_reach_the_job() -> None:
    model = BiEncoder()
    watch = ConeWatch(every=1, strict=True)
    watch.attach(model)
    watch.begin_step(0)
    with pytest.raises(ValueError, match="got none"):
        model(tiny_batch(), tiny_batch())
    watch.detach()
    for strict in (False, True):
        watch = ConeWatch(module="no.such", strict=strict)
        with pytest.raises(AttributeError, match="no"):
            watch.attach(model)
    compiled = torch.compile(bert(), backend="eager")
    with pytest.raises(RuntimeError, match=r"comes from torch\.compile"):
        ConeWatch(strict=True).attach(compiled)
    lenient = ConeWatch()
    lenient.attach(compiled)
    assert not lenient.attached
    assert next(iter(lenient.skipped)).startswith("model: OptimizedModule comes from torch.compile")
    assert lenient.take("training") == {}
    with pytest.raises(ValueError, match="layers: got \\[9\\]"):
        strict_layers(model)


def test_a_model_that_is_never_seen_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    model, batch = bert(num_hidden_layers=1), tiny_batch()  # each layer is compiled for itself
    wanted = model(**batch).last_hidden_state
    watch = ConeWatch(every=1)
    watch.attach(model)
    compiled = torch.compile(model, backend="eager")
    for step in range(2):
        watch.begin_step(step)
        assert torch.equal(compiled(**batch).last_hidden_state, wanted)
        watch.end_step()
    assert watch.take("training") == {}
    watch.detach()
    assert list(watch.skipped.values()) == [2]
    assert caplog.text.count("no forward of the model was seen in a watched step") == 1


def strict_layers(model: BiEncoder) -> None:
    watch = ConeWatch(every=1, strict=True, module="tower", layers=[9])
    watch.attach(model)
    watch.begin_step(0)
    try:
        model.tower(**tiny_batch())
    finally:
        watch.detach()


def test_a_step_whose_forward_stopped_is_left_out_also_where_strict() -> None:
    model, batch = bert(), tiny_batch()
    broken = {"now": False}

    def run_out(*_: Any) -> None:
        if broken["now"]:
            raise torch.OutOfMemoryError("no room")

    model.encoder.layer[1].register_forward_pre_hook(run_out)  # type: ignore[union-attr]
    for strict in (False, True):
        watch = ConeWatch(every=1, strict=strict)
        watch.attach(model)
        for step in range(3):
            watch.begin_step(step)
            broken["now"] = step == 1
            if step == 1:
                with pytest.raises(torch.OutOfMemoryError):
                    model(**batch)
            else:
                model(**tiny_batch(seed=step))
            watch.end_step()
        steps = [sentences_of(model, tiny_batch(seed=step)) for step in (0, 2)]
        assert close(watch.take("training"), step_values(steps))
        watch.detach()
        assert watch.skipped == ({} if strict else {"no room": 1})


def watched_on_ranks(layers: list[int] | None) -> list[dict[str, float]]:
    """Four steps: both ranks see sentences, one of them, neither, and one with gradients where the other has none."""
    rank = torch.distributed.get_rank()
    model = bert()
    watch = ConeWatch(every=1, layers=layers, probe_texts=["w4 w5", "w6 w7 w8", "w9"], reference=None)
    watch.attach(model, word_tokenizer())
    found = []
    for step in range(4):
        watch.begin_step(step)
        if step == 0 or (step == 1 and rank == 1) or (step == 3 and rank == 0):
            model(**tiny_batch(seed=2 * step + rank))
        if step == 3 and rank == 1:
            with torch.no_grad():
                model(**tiny_batch(seed=2 * step + rank))
        watch.end_step()
        found.append(watch.take("training"))
    with watch.evaluating():
        model(**tiny_batch(seed=20 + rank))
    found.append(watch.take("evaluation"))
    if rank == 1:
        model.embeddings.word_embeddings.weight.data.zero_()  # type: ignore[union-attr, operator]
    found.append(watch.measure(0))
    watch.detach()
    return found


def test_ranks_share_the_values_of_their_steps() -> None:
    model = bert()
    first, second = run_ranks(watched_on_ranks, 2, [-1])
    steps = [[0, 1], [3], [], [6]]  # the seeds of the batches that count
    for at, seeds in enumerate(steps):
        assert str(first[at]) == str(second[at])
        wanted = [sentence for seed in seeds for sentence in sentences_of(model, tiny_batch(seed=seed))]
        name = f"cone/L{LAYERS}/anisotropy"
        if wanted:
            assert first[at][name] == pytest.approx(step_values([wanted], layers=[LAYERS])[name], abs=1e-6)
            assert set(first[at]) == set(step_values([wanted], layers=[LAYERS]))
        else:
            assert first[at] == {}
    both = cone_scalars(probed(model, tiny_batch(seed=20), tiny_batch(seed=21)), layers=[LAYERS])
    assert first[4][name] == second[4][name] == pytest.approx(both[name], abs=1e-6)
    # Each rank measures all texts, and rank 0's values are everyone's.
    texts = {
        "input_ids": torch.tensor([[2, 4, 5, 3, PAD], [2, 6, 7, 8, 3], [2, 9, 3, PAD, PAD]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    wanted_of_texts = cone_scalars(probed(model.eval(), texts), layers=[LAYERS])
    assert first[5] == second[5]
    assert first[5] == pytest.approx({f"probe_{key}": value for key, value in wanted_of_texts.items()}, abs=1e-6)


SENTENCES = [{"input_ids": [2, *range(5 + 3 * n, 6 + 4 * n), 3]} for n in range(6)]


@pytest.mark.parametrize("options", [{}, {"return_seq_idx": True}, {"return_flash_attn_kwargs": True}])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_padding_free_batches(architecture: str, options: dict[str, bool]) -> None:
    batch = dict(DataCollatorWithFlattening(**options)(SENTENCES))
    batch.pop("labels")
    if "return_seq_idx" in options:
        batch.pop("position_ids")
    model = tiny_model(architecture)
    sizes = [len(one["input_ids"]) for one in SENTENCES]
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    wanted = [plain_anisotropy(torch.stack([p.mean(0) for p in state[0].double().split(sizes)])) for state in states]
    watch = ConeWatch(every=1, repeats=lambda size: torch.arange(size) >= 6)
    watch.attach(model)
    watch.begin_step(0)
    model(**batch)
    watch.end_step()
    values = watch.take("training")
    watch.detach()
    assert watch.skipped == {}
    assert [values[f"cone/L{layer}/anisotropy"] for layer in range(LAYERS + 1)] == pytest.approx(wanted, abs=1e-6)
