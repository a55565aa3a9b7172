"""Which forwards of a toy model a probe counts, what it adds them to, and exactly what it says of those it does not."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cone_kernels import ConeState, backends
from cone_kernels.probe import cone_probe
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.forward_schedule import ForwardSchedule
from cone_kernels.probe.gathered import Gathered, Skipped
from cone_kernels.probe.side_stream import SideStream
from tests.support.recording_probe import probed, same
from tests.support.tiny_models import ToyModel, tiny_batch

pytestmark = pytest.mark.usefixtures("one_thread")

T, E = True, False  # a forward in training mode, one in evaluation mode


@pytest.mark.parametrize(
    ("every", "during", "forwards", "wanted"),
    [
        (1, "always", [T, E, T], [True, True, True]),
        (2, "always", [T, E, E, T, T, T], [True, True, True, False, True, False]),
        (3, "training", [E, T, T, E, T, T, T], [False, True, False, False, False, True, False]),
        (2, "evaluation", [T, E, E, T, E], [False, True, True, False, True]),
    ],
)
def test_forwards_that_count(every: int, during: Any, forwards: list[bool], wanted: list[bool]) -> None:
    schedule = ForwardSchedule(every, during)
    assert [schedule.counts(training=training) for training in forwards] == wanted


def test_forwards_while_paused_count_neither_nor_towards_the_next() -> None:
    schedule = ForwardSchedule(2, "always")
    assert schedule.counts(training=True)
    schedule.paused = True
    assert not any(schedule.counts(training=training) for training in (T, E, T, T))
    schedule.paused = False
    assert [schedule.counts(training=True) for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("every", "during", "words"),
    [
        (1, "always", "all forwards"),
        (1, "training", "forwards in training mode"),
        (1, "evaluation", "forwards in evaluation mode"),
        (2, "always", "one in 2 forwards in training mode, all in evaluation mode"),
        (1000, "training", "one in 1,000 forwards in training mode"),
        (2, "evaluation", "forwards in evaluation mode"),
    ],
)
def test_a_schedule_in_words(every: int, during: Any, words: str) -> None:
    schedule = ForwardSchedule(every, during)
    assert schedule.in_words() == words
    schedule.paused = True
    assert schedule.in_words() == f"{words}, paused"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"every": 0}, "every: got 0; it must be 1 (each forward) or more"),
        ({"every": -1}, "every: got -1; it must be 1 (each forward) or more"),
        ({"during": "train"}, "during: got 'train'; it must be one of always, training, evaluation"),
        ({"errors": "ignore"}, "errors: got 'ignore' with strict=False; it must be 'raise', or 'skip' without strict"),
        (
            {"errors": "skip", "strict": True},
            "errors: got 'skip' with strict=True; it must be 'raise', or 'skip' without strict",
        ),
        ({"layers": []}, "layers: got []; it must be one layer or more, each once"),
        ({"layers": (2, 1, 2)}, "layers: got [2, 1, 2]; it must be one layer or more, each once"),
    ],
)
def test_options_that_are_out_of_range(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match="got") as refused:
        ConeProbe(ToyModel(), **options)
    assert str(refused.value) == why


@pytest.mark.parametrize("options", [{"errors": "skip"}, {"strict": True}, {"layers": [0]}, {"every": 1}])
def test_options_that_are_within_range(options: dict[str, Any]) -> None:
    with ConeProbe(ToyModel(), **options) as probe, torch.no_grad():
        probe._model(**tiny_batch())
    assert probe.n_sentences == 5


@pytest.mark.parametrize("options", [{"pooling": "median"}, {"poolings": ["mean", "median"]}])
def test_poolings_that_are_unknown_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="median"):
        ConeProbe(ToyModel(), **options)


@pytest.mark.parametrize(
    ("notes", "why"),
    [
        ({"sentence_ids": [[1]]}, "sentence_ids: got torch.int64 of shape (1, 1); it must be integers (B,)"),
        ({"sentence_ids": [0.5]}, "sentence_ids: got torch.float32 of shape (1,); it must be integers (B,)"),
        ({"sentence_ids": [True]}, "sentence_ids: got torch.bool of shape (1,); it must be integers (B,)"),
        ({"repeats": [[True]]}, "repeats: got torch.bool of shape (1, 1); it must be bool (B,)"),
        ({"repeats": [1, 0]}, "repeats: got torch.int64 of shape (2,); it must be bool (B,)"),
    ],
)
def test_notes_that_are_of_no_batch(notes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match="got") as refused:
        ConeProbe(ToyModel()).next_batch(**notes)
    assert str(refused.value) == why


def test_what_a_state_says_of_its_model() -> None:
    model = ToyModel()
    wanted = {"layer_names": ["embeddings", "blocks.0", "blocks.1", "blocks.2"], "final_norm": False}
    assert probed(model, tiny_batch()).info == {"model": "ToyModel", **wanted}
    for name, said in (("", "ToyModel"), ("somebody/toy", "somebody/toy")):
        model.config = SimpleNamespace(_name_or_path=name)  # type: ignore[assignment]
        assert probed(model, tiny_batch()).info == {"model": said, **wanted}


def test_what_is_kept_beside_the_sums_is_as_it_was_asked_for() -> None:
    plain, full = (
        probed(ToyModel(), tiny_batch(), **options)
        for options in ({}, {"second_moment": True, "poolings": ["max"], "layers": [-1, 0]})
    )
    assert (plain.layers, full.layers) == ((0, 1, 2, 3), (0, 3))
    assert full.info["layer_names"] == ["embeddings", "blocks.2"]
    assert ("second_moment" in plain.sentence.fields, "second_moment" in full.sentence.fields) == (False, True)
    assert "unit_second_moment" not in full.sentence.fields
    assert (list(plain.poolings), list(full.poolings)) == ([], ["max"])
    first = probed(ToyModel(), tiny_batch(), pooling="cls")
    assert (plain.pooling, first.pooling) == ("mean", "cls")
    unit = probed(ToyModel(), tiny_batch(), unit_second_moment=True)
    assert ("second_moment" in unit.sentence.fields, "unit_second_moment" in unit.sentence.fields) == (False, True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_layers_wait_for_each_other_in_inference_alone(training: bool, gradients: bool) -> None:
    model = ToyModel().train(training)
    with torch.set_grad_enabled(gradients), ConeProbe(model) as probe, backends.record() as ran:
        model(**tiny_batch())
    assert ran.count(("pool_moments", backends.Backend.CPU)) == (4 if training or gradients else 1)
    assert same(probe.state, probed(ToyModel().eval(), tiny_batch()))


def test_the_time_of_all_additions_counts_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 11.0, 20.0, 22.5])
    monkeypatch.setattr(cone_probe, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    model = ToyModel().eval()
    probe = ConeProbe(model)
    assert probe.seconds == 0.0
    with probe, torch.no_grad():
        for wanted in (1.0, 3.5):
            model(**tiny_batch())
            assert probe.seconds == wanted
    probe.reset()
    assert probe.seconds == 3.5


def test_forwards_are_numbered_from_the_last_attachment() -> None:
    model = ToyModel()
    probe = ConeProbe(model)
    for n in (2, 1):
        with probe, torch.no_grad():
            for at in range(n):
                model(**tiny_batch())
                assert f"forwards seen: {at + 1};" in repr(probe)
    assert probe.n_sentences == 15
    with pytest.raises(RuntimeError, match=r"^the probe saw no forward of ToyModel: call the model inside"), probe:
        pass
    probe.detach()  # once more
    with pytest.raises(RuntimeError) as refused, probe:
        probe.attach()
    assert str(refused.value) == "this ConeProbe is already attached to ToyModel; leave its `with` block first"


def test_a_model_that_was_compiled_since_is_not_attached_to() -> None:
    model = ToyModel()
    probe = ConeProbe(model)
    vars(model)["_compiled_call_impl"] = model.forward
    with pytest.raises(RuntimeError, match=r"^model: ToyModel was compiled in place by \.compile\(\)"):
        probe.attach()
    assert "forward" not in vars(model)


def test_a_call_that_does_not_fit_is_no_forward() -> None:
    model = ToyModel()
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(sentence_ids=[3, 4, 5, 6, 7])
        with pytest.raises(TypeError):
            model(tokens=1)
        assert "forwards seen: 0;" in repr(probe)
        model(**tiny_batch())
    with ConeProbe(model) as wanted, torch.no_grad():
        wanted.next_batch(sentence_ids=[3, 4, 5, 6, 7])  # the notes were for the next one that is
        model(**tiny_batch())
    assert same(probe.state, wanted.state)


@pytest.mark.parametrize("n_sentences", [1, 5])
def test_a_state_that_was_begun_keeps_its_layers_and_one_without_a_sentence_does_not(n_sentences: int) -> None:
    model = ToyModel()
    probe = ConeProbe(model)
    gathered = Gathered()
    probe.gather_into(gathered)
    batch = tiny_batch(sentences=n_sentences)

    def forward() -> None:
        with probe, torch.no_grad():
            model(**batch)

    forward()
    assert probe.state is gathered.state
    model.blocks.append(nn.Linear(8, 8))
    with pytest.raises(RuntimeError) as refused:
        forward()
    assert str(refused.value) == "ToyModel changed since the state was begun: its layers are elsewhere; see reset()"
    gathered.clear()
    assert (gathered.n_sentences, int(probe.state.sentence.count.sum())) == (0, 0)
    forward()
    assert (probe.state.layers, probe.n_sentences) == ((0, 1, 2, 3, 4), n_sentences)


def test_sums_that_are_handed_over_are_added_to_and_the_ones_before_stay() -> None:
    model, first, second = ToyModel(), Gathered(), Gathered()
    probe = ConeProbe(model)
    with probe, torch.no_grad():
        for gathered, seed in ((first, 1), (second, 2), (first, 3)):
            probe.gather_into(gathered)
            model(**tiny_batch(seed=seed))
    assert first.state is not None
    assert second.state is not None
    assert (first.n_sentences, second.n_sentences) == (10, 5)
    assert same(first.state, probed(model, tiny_batch(seed=1), tiny_batch(seed=3)))
    assert same(second.state, probed(model, tiny_batch(seed=2)))
    kept = first.state
    first.forget()
    assert (first.state, first.n_sentences) == (None, 0)
    assert int(kept.sentence.count[0].sum()) == 10


class Joins(SideStream):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []

    def begin(self, device: torch.device, aside: bool) -> None:
        self.log.append(aside)

    def join(self) -> None:
        self.log.append("join")


@pytest.mark.parametrize("aside", [True, False])
def test_sums_are_exact_whatever_the_caller_has_switched_on(aside: bool) -> None:
    gathered = Gathered(side=Joins())
    hidden = torch.ones(1, 1, 2)
    made: list[ConeState] = []

    def empty(device: torch.device) -> ConeState:
        made.append(ConeState.empty([0], 2, device=device))
        return made[-1]

    for _ in range(2):
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            gathered.adding([hidden], aside, empty) as to,
        ):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert to is made[0]
    assert len(made) == 1
    assert gathered.state is made[0]
    # The stream is chosen once, and what follows waits where nothing else goes on.
    assert gathered.side.log == [aside, *["join"] * (not aside), *["join"] * (not aside)]  # type: ignore[attr-defined]


def test_reasons_are_said_once_and_what_is_lost_each_time(caplog: pytest.LogCaptureFixture) -> None:
    skipped = Skipped("a forward of ToyModel is not counted")
    with caplog.at_level(logging.WARNING):
        skipped.note(ValueError("mask: got shape (4, 19)"))
        skipped.note(ValueError("mask: got shape (5, 7)"))
        skipped.note(ValueError("mask: got shape (6, 7)"), lost=1)
        skipped.note(KeyError())
    assert skipped.counts == {"mask: got shape (#, #)": 3, "KeyError": 1}
    said = "a forward of ToyModel is not counted: "
    assert [record.getMessage() for record in caplog.records] == [
        f"{said}mask: got shape (4, 19) (said once)",
        f"{said}mask: got shape (6, 7); 1 sentences that were in the same sums are lost with it (said once)",
        f"{said}KeyError (said once)",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


class Breaks(ToyModel):
    """Stops after so many blocks."""

    after: int | None = None

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        if index == self.after:
            raise OSError("stopped")
        return hidden


def test_a_forward_that_stopped_half_way_is_named_until_the_sums_begin_anew() -> None:
    model = Breaks()
    with ConeProbe(model) as probe:  # with gradients, where layers do not wait
        model(**tiny_batch())
        model.after = 1
        with pytest.raises(OSError, match="stopped"):
            model(**tiny_batch())
        model.after = None
        with pytest.raises(RuntimeError) as refused:
            model(**tiny_batch())
        assert str(refused.value) == (
            "a forward of Breaks stopped after layers [0, 1, 2] had been added. Its sentences are in the sums of some "
            "layers and not of others, so this state is lost: call reset() to begin another"
        )
        probe.gather_into(Gathered())
        model(**tiny_batch())
    assert probe.n_sentences == 5


def test_layers_that_were_not_seen_and_modules_that_ran_too_often_are_named() -> None:
    model, last = ToyModel().eval(), nn.Identity()
    with ConeProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
        block = model.blocks[1]
        model.blocks[1] = last
        with pytest.raises(RuntimeError) as refused:
            model(**tiny_batch())
        assert str(refused.value) == (
            "ToyModel: this forward went through without a hook firing for layers 2 (blocks.1) (blocks skipped at "
            "random, or parts compiled since?). It is in none of the sums"
        )
        model.blocks[1] = block
        model.blocks.insert(2, block)
        with pytest.raises(RuntimeError) as refused:
            model(**tiny_batch())
        assert str(refused.value) == (
            "ToyModel: 'blocks.1' ran 2 times in this forward and 1 times in the first, so its outputs cannot be told "
            "apart as layers. It is in none of the sums"
        )
        del model.blocks[2]
        model(**tiny_batch())
    assert probe.n_sentences == 10


def test_pooled_vectors_and_hidden_states_are_shown_by_layer() -> None:
    model, seen = ToyModel().eval(), []
    with (
        ConeProbe(
            model,
            layers=[1, 3],
            on_pooled=lambda layer, ids, vectors: seen.append((layer, ids.tolist(), vectors)),
            on_hidden=lambda layer, hidden, batch: seen.append((layer, batch.sentence_ids.tolist(), hidden)),
        ) as probe,
        torch.no_grad(),
    ):
        probe.next_batch(sentence_ids=[9, 8], mask=torch.tensor([[1, 1], [1, 0]]))
        states = model(torch.tensor([[3, 4], [5, 6]]), output_hidden_states=True)["hidden_states"]
    assert [(layer, ids) for layer, ids, _ in seen] == [(layer, [9, 8]) for layer in (1, 3, 1, 3)]
    for at, layer in enumerate((1, 3)):
        pooled = torch.stack([states[layer][0].mean(0), states[layer][1, 0]])
        assert torch.allclose(seen[at][2], pooled)
        assert torch.equal(seen[2 + at][2], states[layer])


def test_what_is_shown_keeps_no_gradient_alive() -> None:
    model, seen = ToyModel(), []
    with ConeProbe(
        model,
        on_pooled=lambda layer, ids, vectors: seen.append(vectors),
        on_hidden=lambda layer, hidden, batch: seen.append(hidden),
    ):
        states = model(torch.tensor([[3, 4], [5, 6]]), output_hidden_states=True)["hidden_states"]
    assert all(state.requires_grad for state in states)
    assert len(seen) == 2 * len(states)
    assert not any(rows.requires_grad for rows in seen)
