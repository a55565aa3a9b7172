"""What a measurement says of its layers, its vectors and its corpus: of states made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cone_kernels import ConeState
from cone_kernels.corpora import Corpus
from cone_kernels.names import OUTPUT, Layer
from cone_kernels.runs.measurement import (
    Measurement,
    from_state,
    labels,
    shared_corpus,
    threads_of,
    without_corpus,
)
from cone_kernels.sums import jackknife_groups

LAYERS, DIM = (1, 2, 5), 3


def state_of(*rows: list[float], output: list[list[float]] | None = None, **info: Any) -> ConeState:
    """Sentences of one token, the same in every layer; of the output as given."""
    state = ConeState.empty(LAYERS, DIM, info=info)
    if rows:
        hidden = torch.tensor(rows, dtype=torch.float64)[:, None]  # (B, 1, D)
        state.update([hidden] * len(LAYERS), torch.ones(len(rows), 1, dtype=torch.bool))
    if output is not None:
        state.add_output(torch.tensor(output, dtype=torch.float64), torch.arange(len(output)))
    return state


USED, ZERO, WRONG = [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [float("nan"), 1.0, 1.0]


def of(state: ConeState, **model: Any) -> Measurement:
    found = from_state(state)
    return replace(found, model={**found.model, "name": "folder/m", **model})


@pytest.mark.parametrize(("asked", "number"), [(1, 1), (2, 2), (5, 5), (-1, 5), (-2, 2), (-3, 1), (None, 5)], ids=str)
def test_layers_are_named_by_their_number_or_from_the_end(asked: Layer | None, number: int) -> None:
    assert of(state_of()).layer(asked) == number


@pytest.mark.parametrize("asked", [0, 3, 6, -4])
def test_layers_that_are_not_there_are_refused(asked: int) -> None:
    said = f"layer: got {asked}; it must be one of (1, 2, 5), or from -3 to -1"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        of(state_of()).layer(asked)


def test_the_output_is_a_layer_where_there_is_one() -> None:
    bare, full = of(state_of()), of(state_of(USED, output=[USED]))
    assert (full.layer(None), full.layer(OUTPUT), full.layer(-1)) == (OUTPUT, OUTPUT, 5)
    assert full.moments(OUTPUT) is full.state.output
    assert full.moments(2).layers == (2,)
    for measurement, why in (
        (bare, "none was measured"),
        (of(state_of(), output={"reason": "it has no pooling"}), "it has no pooling"),
    ):
        said = f"layer: got 'output' of m; it must be a number, because {why}"
        with pytest.raises(ValueError, match=f"^{said}$"):
            measurement.layer(OUTPUT)
    with pytest.raises(ValueError, match=r"^layer: got 'last'; it must be a number or 'output'$"):
        full.layer("last")  # type: ignore[arg-type]


def test_why_there_is_no_axis_is_told_in_numbers() -> None:
    few = state_of(USED, WRONG, WRONG, ZERO, output=[USED, USED, ZERO])
    why = "layer 2 has 1 sentence vectors to use, and two are needed: 2 are not finite and 1 are zero"
    assert of(few).why_no_axis(2) == of(few, dtype="bfloat16").why_no_axis(2) == why
    ends = "; bfloat16 has no such end as float16 has at 65,504"
    assert of(few, dtype="float16").why_no_axis(2) == f"{why}{ends}"
    assert of(few).why_no_axis(OUTPUT) is None
    # What is zero has not left the range of float16.
    none = of(state_of(ZERO, output=[ZERO] * 2), dtype="float16")
    said = "the output has 0 sentence vectors to use, and two are needed: 0 are not finite and 2 are zero"
    assert none.why_no_axis(OUTPUT) == said


def test_what_a_layer_is() -> None:
    found = of(state_of(layer_names=["embeddings", "one", "two"], output=[USED]))
    assert [found.layer_name(layer) for layer in (1, 2, 5)] == ["embeddings", "one", "two"]
    assert [of(state_of()).layer_name(layer) for layer in (1, 5)] == ["layer 1", "layer 5"]
    assert found.layer_name(OUTPUT) == "output"
    assert of(found.state, output={"modules": ["Pooling", "Dense"]}).layer_name(OUTPUT) == "Pooling, Dense"
    assert of(found.state, output={}).layer_name(OUTPUT) == "output"
    assert of(found.state, vectors={"dim": 3}).layer_name(OUTPUT) == "the vectors as they were given"


def test_vectors_that_were_not_kept_are_refused() -> None:
    kept: dict[Layer, Any] = {OUTPUT: "of the output", 2: "of layer 2"}
    found = replace(of(state_of()), vectors=kept)
    assert (found.kept_vectors(2), found.kept_vectors(OUTPUT)) == ("of layer 2", "of the output")
    said = "layer: got 5; the measurement kept the sentence vectors of [2, 'output']"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        found.kept_vectors(5)


def test_the_model_is_given_where_there_is_one() -> None:
    loaded: Any = object()
    assert of(state_of()).loaded is None
    assert replace(of(state_of()), load=lambda: loaded).loaded is loaded


def test_groups_are_those_of_the_records_where_a_field_decides_them() -> None:
    records = [{"text": f"w{at}", "document": f"d{at // 2}"} for at in range(400)]
    grouped, plain = Corpus.from_sentences(records, group_by="document"), Corpus.from_sentences(["w4", "w5"])
    wanted = []
    for _ in grouped:
        wanted.append(grouped.group)
    assert 0 in wanted
    ids = torch.tensor([*range(399, -1, -1)])
    found = replace(of(state_of()), sentences=grouped, corpus={"fingerprint": grouped.summary.fingerprint})
    assert found.groups()(ids).tolist() == wanted[::-1]
    for sentences in (None, plain):
        assert replace(found, sentences=sentences).groups() is jackknife_groups
    said = "corpus: got other sentences when it was read again for their groups; it must not change"
    with pytest.raises(ValueError, match=f"^{said}$"):
        replace(found, corpus={"fingerprint": "of others"}).groups()


def test_what_a_state_says_of_its_model_and_its_corpus(tmp_path: Path) -> None:
    model = {"name": "m", "architecture": "BertModel"}
    state = state_of(USED, WRONG, ZERO, output=[WRONG] * 3, model=model, final_norm=True)
    state.save(tmp_path / "cone.safetensors")
    for given, file, name in ((state, None, "m"), (tmp_path / "cone.safetensors", "cone.safetensors", "m")):
        found = from_state(given)
        assert found.model == {"name": name, "architecture": "BertModel", "final_norm": True}
        assert (found.manifest["state"], found.manifest["state_fingerprint"]) == (file, state.fingerprint())
        # Of the output, which has most of them.
        assert (found.corpus["sentences"], found.corpus["tokens"], found.corpus["left_out"]) == (3, 3, 3)
        assert (found.load, found.sentences, found.vectors, found.rank) == (None, None, {}, 0)
    plain = state_of(USED, model="BertModel")
    plain.save(tmp_path / "plain.safetensors")
    assert [from_state(given).model for given in (plain, tmp_path / "plain.safetensors")] == [
        {"name": name, "architecture": "BertModel", "final_norm": None} for name in ("state", "plain")
    ]
    assert "vectors" not in from_state(state_of(vectors="some")).model
    assert from_state(state_of(vectors={"dim": 3})).model["vectors"] == {"dim": 3}


def test_the_corpus_of_vectors_is_that_of_the_output() -> None:
    state = ConeState.of_vectors(DIM)
    state.add_output(torch.tensor([USED, USED, WRONG, ZERO]), torch.arange(4))
    assert without_corpus(state, "v.npy") == {
        "name": "v.npy",
        "sentences": 4,
        "dropped": {
            "empty": 0,
            "invalid_utf8": 0,
            "lone_surrogate": 0,
            "malformed_record": 0,
            "missing_field": 0,
            "no_token": 0,
        },
        "replaced": {"invalid_utf8": 0, "lone_surrogate": 0},
        "examples": [],
        "tokens": 0,
        "left_out": 2,
    }


def test_sentences_without_a_token_are_counted_of_a_state() -> None:
    state = ConeState.empty([0], DIM)
    state.update([torch.ones(3, 2, DIM)], torch.tensor([[1, 1], [0, 0], [1, 0]]))
    found = without_corpus(state)
    assert (found["name"], found["sentences"], found["tokens"]) == (None, 3, 3)
    assert (found["dropped"]["no_token"], found["left_out"]) == (1, 0)


def test_a_name_that_comes_again_is_numbered() -> None:
    names = ("m", "n", "m", "m", "n")
    assert labels([of(state_of(), name=name) for name in names]) == ["m", "n", "m (2)", "m (3)", "n (2)"]


def corpus_of(sentences: int, tokens: int, no_token: int, left_out: int, **more: Any) -> Measurement:
    dropped = {"empty": 4, "no_token": no_token}
    corpus = {"name": "c", "sentences": sentences, "tokens": tokens, "dropped": dropped, "left_out": left_out}
    return replace(of(state_of()), corpus={**corpus, **more})


def test_what_several_measurements_were_made_on() -> None:
    of_run = {"fingerprint": "f", "truncated": 1, "unknown_tokens": 2}
    one, other = corpus_of(9, 30, 1, 5, **of_run), corpus_of(9, 40, 3, 2, **{**of_run, "truncated": 7})
    both = {"name": "c", "fingerprint": "f", "sentences": 9, "tokens": 70, "truncated": 8, "unknown_tokens": 4}
    assert shared_corpus([one, other]) == {**both, "dropped": {"empty": 4, "no_token": 3}, "left_out": 5}
    # A state beside a run says nothing of the corpus, but for what was left out.
    assert shared_corpus([corpus_of(8, 20, 9, 6), one]) == {**one.corpus, "left_out": 6}
    states = shared_corpus([corpus_of(8, 20, 0, 1), corpus_of(7, 10, 2, 0)])
    assert (states["sentences"], states["tokens"], states["left_out"]) == (None, 30, 1)
    assert states["dropped"] == {"empty": 4, "no_token": 2}


def test_what_is_computed_has_the_threads_of_the_run() -> None:
    before = torch.get_num_threads()
    run, state = (replace(of(state_of()), manifest=manifest) for manifest in ({"threads": before + 1}, {}))
    for measurements, threads in (((state, run), before + 1), ((state,), before), ((), before)):
        with threads_of(*measurements):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == before
