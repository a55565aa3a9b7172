"""What the probe leaves alone, which calls it follows, and what it counts."""

from __future__ import annotations

import contextlib
import copy
import inspect
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from cone_kernels import ConeState, backends
from cone_kernels.probe import forward as probed_forward
from cone_kernels.probe.calibration import as_tuple
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.layer_points import find_layer_points
from cone_kernels.state.sentence_batch import SentenceBatch
from tests.support.moment_cases import GROUP_OF
from tests.support.recording_probe import RecordingProbe, assert_statistics_of, hidden_states, probed, same
from tests.support.tiny_models import LAYERS, ToyModel, tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def hooks_of(model: nn.Module) -> list[tuple[str, int, int, bool]]:
    return [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
        for name, m in model.named_modules()
    ]


def test_outputs_and_gradients_are_bitwise_those_without_the_probe() -> None:
    results = []
    for use_probe in (False, True):
        model = tiny_model("bert").train()
        torch.manual_seed(7)
        if use_probe:
            with ConeProbe(model):
                output = model(**tiny_batch())
        else:
            output = model(**tiny_batch())
        output.last_hidden_state.square().sum().backward()
        results.append((output.last_hidden_state, {n: p.grad for n, p in model.named_parameters()}))
    (plain, plain_grads), (watched, watched_grads) = results
    assert torch.equal(plain, watched)
    assert set(output) == {"last_hidden_state", "pooler_output"}
    for name, grad in plain_grads.items():
        assert (grad is None and watched_grads[name] is None) or torch.equal(grad, watched_grads[name])


def test_random_state_training_flags_and_gradient_mode_stay() -> None:
    model = tiny_model("bert").train()
    model.encoder.layer[1].eval()
    flags = [module.training for module in model.modules()]
    torch.manual_seed(3)
    wanted = (model(**tiny_batch()), torch.get_rng_state())[1]
    torch.manual_seed(3)
    with ConeProbe(model):
        assert model(**tiny_batch()).last_hidden_state.requires_grad
    assert torch.equal(torch.get_rng_state(), wanted)
    assert [module.training for module in model.modules()] == flags
    assert torch.is_grad_enabled()


def test_gradients_under_autocast_are_not_cut_by_calibration() -> None:
    # Autocast caches its bfloat16 weights; ones cached without gradients would leave the weights without any.
    grads = []
    for use_probe in (False, True):
        model = tiny_model("llama")
        with torch.autocast("cpu", torch.bfloat16):
            if use_probe:
                with RecordingProbe(model) as probe:
                    loss = model(**tiny_batch()).last_hidden_state.float().square().sum()
            else:
                loss = model(**tiny_batch()).last_hidden_state.float().square().sum()
        loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(grad is not None and torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())
    with torch.autocast("cpu", torch.bfloat16):
        states = hidden_states(model, tiny_batch())
    assert_statistics_of(probe.state, [(states, tiny_batch()["attention_mask"])])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_counts_each_layer_once() -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    wanted = probed(model, tiny_batch())
    for reentrant in (False, True):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        with ConeProbe(model) as probe:
            model(**tiny_batch()).last_hidden_state.sum().backward()
        assert same(probe.state, wanted)


def test_no_hidden_state_is_kept() -> None:
    model = tiny_model("llama")
    alive: list[weakref.ref[Tensor]] = []
    for block in model.layers:
        block.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    with ConeProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
        assert len(alive) == 2 * LAYERS  # the calibration's too
        assert all(reference() is None for reference in alive)
    assert int(probe.state.sentence.count.sum()) == 5 * (LAYERS + 1)


def test_hooks_are_gone_afterwards_and_after_an_error() -> None:
    model = tiny_model("bert")
    hidden_states(model, tiny_batch())  # transformers leaves its own hooks at the first such call
    before = hooks_of(model)
    probed(model, tiny_batch())
    assert hooks_of(model) == before
    with pytest.raises(KeyError), ConeProbe(model):  # noqa: PT012
        model(**tiny_batch())
        assert hooks_of(model) != before
        raise KeyError
    assert hooks_of(model) == before
    with pytest.raises(ValueError, match="attention_mask"), ConeProbe(model):
        model(tiny_batch()["input_ids"], attention_mask=torch.ones(5, 9))
    assert hooks_of(model) == before


def test_hooks_that_change_a_layer_are_seen() -> None:
    model = tiny_model("bert")
    model.encoder.layer[1].register_forward_hook(lambda module, args, output: 2 * output)
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
    for layer, state in enumerate(hidden_states(model, tiny_batch())):
        assert torch.equal(probe.added[layer][0], state)


def test_hooks_that_come_between_two_forwards_are_seen_too() -> None:
    model = ToyModel()
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
        model.blocks[1].register_forward_hook(lambda module, args, output: 2 * output)
        model(**tiny_batch())
    for layer, state in enumerate(hidden_states(model, tiny_batch())):
        assert torch.equal(probe.added[layer][1], state)


def test_parts_of_a_probed_model_are_copied_without_hooks() -> None:
    model = tiny_model("bert")
    hidden_states(model, tiny_batch())
    wanted = hooks_of(model.encoder)
    with ConeProbe(model), torch.no_grad():
        model(**tiny_batch())
        assert hooks_of(copy.deepcopy(model.encoder)) == wanted


def test_hooks_are_off_however_the_forward_was_left() -> None:
    model = ToyModel()
    before, last = hooks_of(model), model.blocks[2]
    probe = ConeProbe(model)
    for act in (probe.detach, model.blocks[0]._forward_hooks.clear):
        with last.register_forward_hook(lambda *_, act=act: act()), torch.no_grad():
            probe.attach()
            model(**tiny_batch())
        probe.detach()
        assert hooks_of(model) == before
    assert probe.n_sentences == 10


@pytest.mark.parametrize(
    "options",
    [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}, {"use_cache": False}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "xlm", "llama"])
def test_options_of_the_call_do_not_matter(architecture: str, options: dict[str, Any]) -> None:
    model = tiny_model(architecture, attn_implementation="eager")
    wanted = probed(model, tiny_batch())
    with ConeProbe(model) as probe, torch.no_grad():
        model(**tiny_batch(), **options)
    assert same(probe.state, wanted)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "xlm", "llama"])
def test_options_of_a_later_call_do_not_matter(architecture: str) -> None:
    model = tiny_model(architecture, attn_implementation="eager")
    batch = tiny_batch()
    wanted = probed(model, *[batch] * 4)
    with ConeProbe(model) as probe, torch.no_grad():  # the layers are found in the first call, which has none
        for options in ({}, {"output_attentions": True}, {"return_dict": False}, {"output_hidden_states": True}):
            model(**batch, **options)
    assert same(probe.state, wanted)


class DoubleFromTheSecondBlock(ToyModel):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2].double()

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden.double() if index == 1 else hidden


@pytest.mark.usefixtures("one_thread")
def test_layers_of_another_dtype_are_added_by_a_call_of_their_own() -> None:
    model, batch = DoubleFromTheSecondBlock().eval(), tiny_batch()
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True)["hidden_states"]
    assert [state.dtype for state in states] == [torch.float32, torch.float32, torch.float64, torch.float64]
    found = probed(model, batch)
    for layer, hidden in enumerate(states):
        alone = ConeState.empty([layer], 8)
        alone.update([hidden], batch["attention_mask"])
        for level in ("sentence", "token"):
            got, wanted = getattr(found, level).select(layer).sums, getattr(alone, level).sums
            assert all(torch.equal(got[name], wanted[name]) for name in wanted), (layer, level)


def test_embeddings_in_place_of_ids_between_forwards() -> None:
    model = tiny_model("llama")
    batch = tiny_batch()
    embedded = {"inputs_embeds": model.embed_tokens(batch["input_ids"]), "attention_mask": batch["attention_mask"]}
    assert same(probed(model, batch, embedded), probed(model, batch, batch))
    assert same(probed(model, embedded, batch), probed(model, batch, batch))


def test_calls_of_forward_itself() -> None:
    # sentence-transformers 6 calls model.forward, which runs no hook of the model's own.
    model = tiny_model("bert")
    with ConeProbe(model) as probe, torch.no_grad():
        assert list(inspect.signature(model.forward).parameters)[:2] == ["input_ids", "attention_mask"]
        model.forward(**tiny_batch())
        model(**tiny_batch(seed=2))
    assert same(probe.state, probed(model, tiny_batch(), tiny_batch(seed=2)))


def test_arguments_by_position_and_one_token_sentences() -> None:
    model = tiny_model("xlnet")  # its layers are (T, B, D)
    batch = tiny_batch(sentences=3, tokens=4)
    short = {name: value[:, :1] for name, value in batch.items()}
    with RecordingProbe(model) as probe, torch.no_grad():
        model(short["input_ids"], short["attention_mask"])
        model(batch["input_ids"], batch["attention_mask"])
    assert_statistics_of(probe.state, [(hidden_states(model, b), b["attention_mask"]) for b in (short, batch)])


def test_inference_mode_and_without() -> None:
    model = tiny_model("bert")
    with ConeProbe(model) as probe:
        with torch.inference_mode():
            model(**tiny_batch())
        with torch.no_grad():
            model(**tiny_batch(seed=2))
        with torch.inference_mode():
            model(**{name: value.clone() for name, value in tiny_batch(seed=3).items()})
    assert same(probe.state, probed(model, *(tiny_batch(seed=seed) for seed in (1, 2, 3))))


def test_second_moments_of_the_sentence_vectors() -> None:
    model = tiny_model("bert")
    batch = tiny_batch()
    state = probed(model, batch, second_moment=True, unit_second_moment=True)
    mask = batch["attention_mask"].double()[..., None]
    for layer, hidden in enumerate(hidden_states(model, batch)):
        pooled = (hidden.double() * mask).sum(1) / mask.sum(1)
        units = nn.functional.normalize(pooled)
        for got, rows in ((state.sentence.second_moment, pooled), (state.sentence.unit_second_moment, units)):
            assert torch.allclose(got[layer].triu(), (rows.T @ rows).triu(), rtol=1e-6, atol=1e-6)


def test_wrappers_are_unwrapped(tmp_path: Path) -> None:
    model = tiny_model("bert")
    wanted = probed(model, tiny_batch())
    parallel = nn.DataParallel(model)
    with ConeProbe(parallel) as probe, torch.no_grad():
        parallel(**tiny_batch())
    assert same(probe.state, wanted)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        distributed = nn.parallel.DistributedDataParallel(model)
        with ConeProbe(distributed) as probe:
            distributed(**tiny_batch()).last_hidden_state.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert same(probe.state, wanted)


def test_sentence_ids_decide_the_group() -> None:
    model = tiny_model("bert")
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(sentence_ids=[64, 3, 67, 131, 9])
        model(**tiny_batch())
        model(**tiny_batch())
    for layer in range(LAYERS + 1):
        # The second batch counts on from the five sentences before it.
        wanted = torch.bincount(
            torch.tensor([GROUP_OF[index] for index in (64, 3, 67, 131, 9, *range(5, 10))]), minlength=64
        )
        assert torch.equal(probe.state.sentence.count[layer], wanted)


def test_forwards_that_fail_at_once_count_for_nothing() -> None:
    model = ToyModel()
    with ConeProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
        with pytest.raises(TypeError, match="unexpected"):
            model(no_such_argument=1)
        with pytest.raises(ValueError, match=r"attention_mask: got shape \(5, 6\); it must be \(5, 7\)"):
            model(tiny_batch()["input_ids"], tiny_batch()["attention_mask"][:, :6])
        model(**tiny_batch(seed=2))
    assert same(probe.state, probed(model, tiny_batch(), tiny_batch(seed=2)))


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2, 3, 4, 5]], [0.5, 1, 2, 3, 4], [True] * 5])
def test_sentence_ids_that_do_not_fit(ids: Any) -> None:
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="sentence_ids: got"), ConeProbe(model) as probe:  # noqa: PT012
        probe.next_batch(sentence_ids=ids)
        model(**tiny_batch())


def test_mask_of_the_next_batch_is_for_one_forward() -> None:
    model = tiny_model("bert")
    batch = tiny_batch()
    without_first = batch["attention_mask"].clone()
    without_first[:, 0] = 0
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(mask=without_first)
        model(**batch)
        model(**batch)
    states = hidden_states(model, batch)
    assert_statistics_of(probe.state, [(states, without_first), (states, batch["attention_mask"])])


def test_without_a_mask_every_token_counts() -> None:
    model = tiny_model("gpt2")
    batch = {"input_ids": tiny_batch()["input_ids"]}
    state = probed(model, batch)
    assert_statistics_of(state, [(hidden_states(model, batch), torch.ones(5, 7))])


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (torch.ones(5, 1, 7, 7, dtype=torch.bool), r"attention_mask: got torch.bool of shape \(5, 1, 7, 7\)"),
        (torch.ones(5, 7), "attention_mask: got torch.float32"),
        (torch.full((5, 7), 2), "attention_mask: got values other than 0 and 1"),
    ],
)
def test_masks_that_do_not_say_which_tokens_count(mask: Tensor, wanted: str) -> None:
    model = tiny_model("bert")
    batch = tiny_batch()
    with ConeProbe(model) as probe, torch.no_grad():
        with pytest.raises(ValueError, match=rf"{wanted}.*next_batch\(mask=...\)"):
            model(batch["input_ids"], attention_mask=mask)
        if mask.dim() == 4:
            probe.next_batch(mask=torch.ones(5, 7, dtype=torch.bool))
            model(batch["input_ids"], attention_mask=mask)
            assert int(probe.state.token.count[0].sum()) == 35


def nan_batch(model: nn.Module) -> dict[str, Tensor]:
    batch = tiny_batch()
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach().clone()
    embeds[3, 1] = float("nan")
    return {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}


def test_bad_rows_are_left_out_and_counted() -> None:
    model = tiny_model("bert")
    state = probed(model, nan_batch(model))
    assert state.token.n_nonfinite[0].sum() == 1
    assert state.sentence.n_nonfinite[0].sum() == 1
    assert state.sentence.count[0].sum() == 4


def test_strict_names_layer_and_sentences() -> None:
    model = tiny_model("bert")
    batch = nan_batch(model)
    with ConeProbe(model, strict=True) as probe, torch.no_grad():
        probe.next_batch(sentence_ids=[10, 11, 12, 13, 14])
        message = r"layer 0 \(embeddings\): a token that is not finite in sentences 13; layer 1 \(encoder.layer.0\): a"
        with pytest.raises(ValueError, match=message):
            model(**batch)
        model(**tiny_batch())
    # The forward was whole: its other sentences count.
    assert probe.state.sentence.count[0].sum() == 9


def test_strict_refuses_zero_tokens_and_empty_sentences() -> None:
    model = ToyModel()
    with torch.no_grad():
        model.embeddings.weight[42] = 0
    ids, mask = torch.full((3, 4), 7), torch.ones(3, 4, dtype=torch.int64)
    ids[1, 2] = 42
    mask[2] = 0
    with ConeProbe(model, strict=True), pytest.raises(ValueError, match="strict: ") as raised:
        model(ids, mask)
    assert "layer 0 (embeddings): a zero token in sentences 1;" in str(raised.value)
    assert "layer 3 (blocks.2): no token under the mask in sentences 2" in str(raised.value)


def test_layers_wait_for_each_other_and_are_added_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_model("bert"), [tiny_batch(seed=seed) for seed in (1, 2)]

    def runs(**options: Any) -> tuple[str, int]:
        with ConeProbe(model, **options) as probe, torch.no_grad(), backends.record() as ran:
            for batch in batches:
                model(**batch)
        return probe.state.fingerprint(), ran.count(("pool_moments", backends.Backend.CPU))

    together = runs(second_moment=True)
    assert together[1] == len(batches)
    monkeypatch.setitem(probed_forward._HELD_BYTES, "cpu", 0)
    one_by_one = runs(second_moment=True)
    assert one_by_one[1] == len(batches) * (model.config.num_hidden_layers + 1)
    assert one_by_one[0] == together[0]


class WritesLater(ToyModel):
    """Gives out copies, and writes to what a block returned once the next one has read it."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
    ) -> dict[str, Any]:
        hidden = self.embeddings(input_ids)
        states = [hidden.clone()]
        for block in self.blocks:
            following = block(hidden)
            hidden.zero_()
            hidden = following
            states.append(hidden.clone())
        output: dict[str, Any] = {"last_hidden_state": states[-1]}
        return output | {"hidden_states": tuple(states)} if output_hidden_states else output


def test_a_layer_that_is_written_to_does_not_wait() -> None:
    model, batch = WritesLater(), tiny_batch()
    with torch.no_grad():
        found = find_layer_points(model, batch)
        assert [point.kept for point in found.points] == [False, False, False, True]
        with ConeProbe(model) as probe:
            model(**batch)
    assert_statistics_of(probe.state, [(hidden_states(model, batch), batch["attention_mask"])])


def test_layers_of_a_forward_that_failed_are_not_held() -> None:
    model = tiny_model("bert").eval()
    with ConeProbe(model) as probe, torch.inference_mode():
        model(**tiny_batch())
        layers: list[StorageWeakRef] = []  # what a probe holds has another tensor's name and the same memory
        first, last = model.encoder.layer[0], model.encoder.layer[-1]  # type: ignore[union-attr, index]
        first.register_forward_hook(
            lambda module, args, output: layers.append(StorageWeakRef(as_tuple(output)[0].untyped_storage()))
        )

        def out_of_memory(*_: Any) -> None:
            raise torch.OutOfMemoryError("no memory")

        with last.register_forward_hook(out_of_memory), contextlib.suppress(torch.OutOfMemoryError):
            model(**tiny_batch())
        assert len(layers) == 1
        assert layers[0].expired()
        model(**tiny_batch())
    assert int(probe.state.sentence.count[0].sum()) == 10


def test_hidden_states_are_shown_as_they_are_added_with_their_batch() -> None:
    model = tiny_model("bert")
    ids = torch.randint(4, 90, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [1] * 4 + [0] * 2])
    seen: dict[int, tuple[torch.Tensor, list[int], list[int]]] = {}

    def keep(layer: int, hidden: torch.Tensor, batch: SentenceBatch) -> None:
        seen[layer] = hidden.clone(), batch.tokens.sizes.tolist(), batch.sentence_ids.tolist()

    with ConeProbe(model, on_hidden=keep) as probe, torch.inference_mode():
        probe.next_batch([5, 6, 7])
        found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert list(seen) == list(range(len(found)))
    for layer, hidden in enumerate(found):
        torch.testing.assert_close(seen[layer][0], hidden, rtol=0, atol=0)
        assert seen[layer][1:] == ([6, 2, 4], [5, 6, 7])
