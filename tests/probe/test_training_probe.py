"""The probe inside a training job: what it counts, and that it changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from cone_kernels.probe.cone_probe import ConeProbe
from tests.probe.test_probe import hooks_of
from tests.support.gloo_ranks import run_ranks
from tests.support.moment_cases import GROUP_OF
from tests.support.recording_probe import RecordingProbe, assert_statistics_of, hidden_states, probed, same
from tests.support.tiny_models import LAYERS, PAD, ToyModel, tiny_batch, tiny_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(**batch).last_hidden_state.square().mean().backward()


def seen_in_training(model: nn.Module, batch: dict[str, Tensor], seed: int = 5) -> tuple[Tensor, ...]:
    """The hidden states of a forward as it runs from this seed: dropout, autocast and mode as they are now."""
    torch.manual_seed(seed)
    with torch.no_grad():
        states: tuple[Tensor, ...] = model(**batch, output_hidden_states=True)["hidden_states"]
    return states


def assert_probe_sees(model: nn.Module, wanted: tuple[Tensor, ...], seed: int = 5) -> None:
    with RecordingProbe(model) as probe:
        hidden_states(model, tiny_batch(seed=9))  # the calibration draws no random number of the user's
        probe.added.clear()
        torch.manual_seed(seed)
        training_step(model, tiny_batch())
    for layer, state in enumerate(wanted):
        assert len(probe.added[layer]) == 1
        assert torch.equal(probe.added[layer][0], state), layer


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5-encoder", "deberta-v2", "modernbert", "albert"])
def test_dropout_is_in_what_is_seen(architecture: str) -> None:
    model = tiny_model(architecture).train()
    wanted = seen_in_training(model, tiny_batch())
    assert not torch.equal(wanted[1], hidden_states(model, tiny_batch())[1])  # there is dropout before layer 1
    assert_probe_sees(model, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_gradient_checkpointing_under_dropout_and_two_forwards(architecture: str, reentrant: bool) -> None:
    # Two forwards before one backward, as contrastive losses run them: both are computed again in it.
    model = tiny_model(architecture).train()
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    counts = []
    for one in (model, plain):
        torch.manual_seed(2)
        with ConeProbe(one) as probe:
            first, second = (one(**tiny_batch(seed=seed)).last_hidden_state for seed in (1, 2))
            (first.mean() * second.square().mean()).backward()
        counts.append(probe.state)
    assert same(*counts)
    grads = [[p.grad for p in one.parameters() if p.grad is not None] for one in (model, plain)]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_whole_model_counts_once(reentrant: bool) -> None:
    model = tiny_model("bert").train()
    batch = tiny_batch()
    weight = torch.ones((), requires_grad=True)  # re-entrant checkpoints need an input with a gradient

    def run(ids: Tensor, scale: Tensor) -> Tensor:
        hidden: Tensor = model(ids, batch["attention_mask"]).last_hidden_state * scale
        return hidden

    with ConeProbe(model, every=2) as probe:
        for _ in range(3):
            checkpoint(run, batch["input_ids"], weight, use_reentrant=reentrant).mean().backward()
    assert weight.grad is not None
    # The first and the third; a forward computed again counts neither as one nor towards `every`.
    assert probe.n_sentences == int(probe.state.sentence.count[0].sum()) == 10


def test_autocast_in_training() -> None:
    model = tiny_model("llama").train()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = seen_in_training(model, tiny_batch())
        assert_probe_sees(model, wanted)
        with ConeProbe(model) as probe:
            model(**tiny_batch())
    assert_statistics_of(probe.state, [(wanted, tiny_batch()["attention_mask"])])


def test_frozen_model_with_a_head_that_trains() -> None:
    model = tiny_model("bert").train().requires_grad_(False)
    head = nn.Linear(32, 2)
    wanted = seen_in_training(model, tiny_batch())
    with RecordingProbe(model) as probe:
        torch.manual_seed(5)
        head(model(**tiny_batch()).last_hidden_state).mean().backward()
    assert all(torch.equal(probe.added[layer][0], state) for layer, state in enumerate(wanted))
    assert head.weight.grad is not None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("wrapped", [False, True], ids=["the model inside", "the PeftModel"])
def test_lora(wrapped: bool, checkpointing: bool) -> None:
    base = tiny_model("bert")
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query", "value"], lora_dropout=0.2)
    model = peft.get_peft_model(base, config).train()
    nn.init.normal_(model.base_model.model.encoder.layer[0].attention.self.query.lora_B["default"].weight)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": True})
        base.enable_input_require_grads()
    wanted = seen_in_training(model, tiny_batch())
    with RecordingProbe(model if wrapped else base) as probe:
        torch.manual_seed(5)
        training_step(model, tiny_batch())
    assert all(torch.equal(probe.added[layer][0], state) for layer, state in enumerate(wanted))
    assert all(len(added) == 1 for added in probe.added.values())


def test_every_counts_the_first_of_each_k_and_evaluation_whole() -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    wanted_in_training = probed(model, *(tiny_batch(seed=seed) for seed in (0, 3, 6)))
    wanted_in_evaluation = probed(model, tiny_batch(seed=20), tiny_batch(seed=21))
    with ConeProbe(model, every=3) as probe:
        for seed in range(7):
            model(**tiny_batch(seed=seed))
        assert same(probe.state, wanted_in_training)
        probe.reset()
        model.eval()
        for seed in (20, 21):
            model(**tiny_batch(seed=seed))
    assert same(probe.state, wanted_in_evaluation)


@pytest.mark.parametrize(("during", "wanted"), [("always", [1, 2, 3]), ("training", [1, 3]), ("evaluation", [2])])
def test_training_and_evaluation_apart(during: Any, wanted: list[int]) -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with ConeProbe(model, during=during) as probe:
        for seed, training in ((1, True), (2, False), (3, True)):
            model.train(training)(**tiny_batch(seed=seed))
    assert same(probe.state, probed(model, *(tiny_batch(seed=seed) for seed in wanted)))


def test_two_probes_on_one_model() -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with ConeProbe(model, during="training") as train, ConeProbe(model, during="evaluation") as evaluation:
        for seed, training in ((1, True), (2, False), (3, True)):
            model.train(training)(**tiny_batch(seed=seed))
    assert same(train.state, probed(model, tiny_batch(seed=1), tiny_batch(seed=3)))
    assert same(evaluation.state, probed(model, tiny_batch(seed=2)))


def test_pause_and_resume() -> None:
    model = tiny_model("bert").train()
    with ConeProbe(model, every=2) as probe:
        model(**tiny_batch())
        probe.pause()
        model(**tiny_batch())
        assert probe.n_sentences == 5
        probe.resume()
        model(**tiny_batch())  # the second that is not paused, left out by `every`
        assert probe.n_sentences == 5
        model(**tiny_batch())
        assert probe.n_sentences == 10


def test_a_forward_that_is_left_out_finds_no_hook_on_the_layers() -> None:
    model = tiny_model("bert").train()
    inside = []
    model.encoder.layer[1].register_forward_hook(lambda module, args, output: inside.append(hooks_of(model)[1:]))
    hidden_states(model, tiny_batch())  # transformers leaves its own hooks at the first such call
    before = hooks_of(model)[1:]
    inside.clear()
    with ConeProbe(model, every=2):
        model(**tiny_batch())
        assert hooks_of(model)[1:] == before
        model(**tiny_batch())
    calibration, counted, left_out = inside
    assert calibration != before
    assert counted != before
    assert left_out == before


def test_notes_for_a_forward_that_is_left_out_are_dropped() -> None:
    model = tiny_model("bert").train()
    with ConeProbe(model, every=2) as probe:
        for first in (0, 100, 200):
            probe.next_batch(sentence_ids=range(first, first + 5))
            model(**tiny_batch())
    wanted = torch.bincount(torch.tensor([GROUP_OF[index] for index in (*range(5), *range(200, 205))]), minlength=64)
    assert torch.equal(probe.state.sentence.count[0], wanted)


class PackedModel(ToyModel):
    """Drops the padding between its blocks, as models with unpadded attention do."""

    def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[mask.bool()]


@pytest.mark.parametrize("form", ["padded", "packed inside", "flattened"])
def test_repeats_are_left_out(form: str) -> None:
    model = ToyModel() if form == "padded" else PackedModel() if form == "packed inside" else FlattenedModel()
    repeats = torch.tensor([False, True, False, False, True])
    batch, other = tiny_batch(), tiny_batch(seed=2)
    alone = {name: value[~repeats] for name, value in batch.items()}
    if form == "flattened":
        batch, other, alone = flattened(batch), flattened(other), flattened(alone)
    wanted = probed(model, alone, other)
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(repeats=repeats)
        model(**batch)
        probe.next_batch(repeats=[True] * 5)
        model(**batch)
        model(**other)
        assert probe.n_sentences == 8
        for wrong in (torch.tensor([0, 1, 0, 0, 1]), [True] * 4):
            with pytest.raises(ValueError, match=r"repeats: got"):  # noqa: PT012
                probe.next_batch(repeats=wrong)
                model(**other)
    assert same(probe.state, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every: got 0"), ({"during": "train"}, "during: got 'train'; it must be one of always, training")],
)
def test_options_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConeProbe(tiny_model("bert"), **options)


def test_attach_and_detach() -> None:
    model = tiny_model("bert")
    probe = ConeProbe(model).attach()
    model(**tiny_batch())
    probe.detach()
    model(**tiny_batch(seed=2))
    assert "forward" not in model.__dict__
    assert same(probe.state, probed(model, tiny_batch()))
    with probe:
        model(**tiny_batch(seed=2))
    assert same(probe.state, probed(model, tiny_batch(), tiny_batch(seed=2)))


class FlattenedModel(ToyModel):
    """Takes sentences in one row, and leaves it to its blocks which tokens belong together."""

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False, **rows: Tensor) -> dict[str, Any]:
        return super().forward(input_ids, None, output_hidden_states)


def flattened(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch as DataCollatorWithFlattening makes it: one row (1, N), and where each sentence begins."""
    mask = batch["attention_mask"].bool()
    starts = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    positions = (mask.cumsum(1) - 1)[mask]
    return {"input_ids": batch["input_ids"][mask][None], "position_ids": positions[None], "cu_seq_lens_q": starts}


def test_sentences_flattened_into_one_row() -> None:
    # Without flash attention BERT lets tokens see other sentences' here, so what is compared is this very forward.
    model = tiny_model("bert")
    batch = tiny_batch()
    flat = flattened(batch)
    with torch.no_grad():
        states = model(**flat, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].bool()
    padded = [torch.zeros(*mask.shape, 32).masked_scatter(mask[..., None], state[0]) for state in states]
    # Where sentences begin is told by `cu_seq_lens_q`, or by positions that start again; without both one row is one.
    for left_out in ("nothing", "cu_seq_lens_q"):
        with ConeProbe(model) as probe, torch.no_grad():
            model(**{name: value for name, value in flat.items() if name != left_out})
            model(**batch)
        assert_statistics_of(probe.state, [(padded, mask), (hidden_states(model, batch), mask)])
        assert int(probe.state.sentence.count[0].sum()) == 10
    with ConeProbe(model) as probe, torch.no_grad():
        model(input_ids=flat["input_ids"])
    assert int(probe.state.sentence.count[0].sum()) == 1


def filled_up(flat: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """A flattened batch with n tokens of padding behind it, each a sentence of its own, as TRL's collator makes it."""
    starts = flat["cu_seq_lens_q"]
    numbers = torch.repeat_interleave(
        torch.arange(len(starts) - 1 + n), nn.functional.pad(starts.diff(), (0, n), value=1)
    )
    return {
        "input_ids": nn.functional.pad(flat["input_ids"], (0, n), value=PAD),
        "position_ids": nn.functional.pad(flat["position_ids"], (0, n), value=0),
        "cu_seq_lens_q": torch.cat([starts, starts[-1] + torch.arange(1, n + 1, dtype=torch.int32)]),
        "seq_idx": numbers[None].to(torch.int32),
    }


@pytest.mark.parametrize("told_by", ["cu_seq_lens_q", "seq_idx", "position_ids"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_fills_up_a_flattened_row_is_no_sentence(told_by: str, wrapped: bool) -> None:
    model = tiny_model("llama")
    seen = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])) if wrapped else model
    # The sentences are of 7 to 3 tokens and one of a single one; one of a single padding token stands in their midst.
    batch = tiny_batch(sentences=7)
    batch["input_ids"][-1, 0], batch["attention_mask"][-1, 1:] = 9, 0
    batch["input_ids"][2], batch["attention_mask"][2, 1:] = PAD, 0
    flat = filled_up(flattened(batch), 3)
    given = {name: flat[name] for name in ("input_ids", "position_ids", told_by)}
    with torch.no_grad():
        states = model(**given, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].bool()
    n = int(mask.sum())
    padded = [torch.zeros(*mask.shape, 32).masked_scatter(mask[..., None], state[0, :n]) for state in states]
    repeats = torch.tensor([True, *[False] * 6])
    with ConeProbe(seen) as probe, torch.no_grad():
        seen(**given)
    assert_statistics_of(probe.state, [(padded, mask)])
    with ConeProbe(seen) as probe, torch.no_grad():
        probe.next_batch(repeats=repeats, groups=torch.arange(7))
        seen(**given)
    assert_statistics_of(probe.state, [([state[1:] for state in padded], mask[1:])])
    assert probe.state.sentence.count[0].sum() == probe.state.sentence.count[0, 1:7].sum() == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 3, 8])}, "cu_seqlens"),
        ({"cu_seq_lens_q": [0, 3, 25]}, "cu_seq_lens_q: got list with tokens"),
    ],
)
def test_starts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    model = tiny_model("bert")
    with ConeProbe(model), torch.no_grad(), pytest.raises(ValueError, match=message):
        model(**(flattened(tiny_batch()) | change))


def parallel_steps(kind: str) -> tuple[list[int], bool, float]:
    """Three steps of one rank: sentences by layer, whether gradients are those without the probe, error of layers."""
    rank = torch.distributed.get_rank()
    batch = tiny_batch(seed=rank)
    gradients = []
    for use_probe in (False, True):
        model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        wanted = hidden_states(model, batch)
        if "checkpointing" in kind:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if "ddp" in kind:
            parallel: nn.Module = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        else:
            # The embeddings stay with the root, whose parameters are taken away after its forward.
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if "bfloat16" in kind else MixedPrecisionPolicy()
            for block in model.encoder.layer:
                fully_shard(block, mp_policy=policy)
            parallel = fully_shard(model, reshard_after_forward=True, mp_policy=policy)
        probe = RecordingProbe(parallel, every=2)
        if use_probe:
            probe.attach()
        for _ in range(3):
            parallel.zero_grad()
            training_step(parallel, batch)
        probe.detach()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append([grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in grads])
    same_gradients = all(torch.equal(plain, watched) for plain, watched in zip(*gradients, strict=True))
    error = max(float((probe.added[layer][1].float() - state).abs().max()) for layer, state in enumerate(wanted))
    return probe.state.sentence.count.sum(1).tolist(), same_gradients, error


@pytest.mark.parametrize("kind", ["ddp", "ddp checkpointing", "fsdp2", "fsdp2 checkpointing", "fsdp2 bfloat16"])
def test_parallel_training(kind: str) -> None:
    for count, same_gradients, error in run_ranks(parallel_steps, 2, kind):
        assert count == [10] * (LAYERS + 1)
        assert same_gradients
        assert error < (0.2 if "bfloat16" in kind else 1e-5)
