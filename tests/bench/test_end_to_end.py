"""The end-to-end benchmark on the CPU, at a size that takes no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import end_to_end, generated
from cone_kernels.models import load_model
from cone_kernels.state.cone_state import ConeState
from tests.support.recording_probe import assert_statistics_of, hidden_states

pytestmark = pytest.mark.usefixtures("one_thread")

N = 20


def test_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["end_to_end", "--device", "cpu", "--sentences", str(N), "--out", str(file)])
    end_to_end.main()
    found = json.loads(file.read_text())
    assert list(found) == ["small"]
    figures = found["small"]
    lengths = [2 + len(text.split()) for text in generated.sentences(N)]
    assert (figures["sentences"], figures["tokens"]) == (N, sum(lengths))
    # On so few sentences a batch is all sentences of one length, in a run too.
    assert figures["batches"] == figures["shapes"] == figures["run_shapes"] == len(set(lengths))
    passes = {end_to_end.BARE, end_to_end.PLAIN, end_to_end.PROBE, end_to_end.MOMENTS}
    assert set(figures["over_bare"]) == passes - {end_to_end.BARE}
    assert set(figures["seconds"]) == passes | {end_to_end.RUN, end_to_end.RUN_MOMENTS}
    assert set(figures["first_seconds"]) == passes | {end_to_end.RUN}
    seconds = figures["seconds"]
    assert figures["over_bare"][end_to_end.PROBE] == seconds[end_to_end.PROBE] / seconds[end_to_end.BARE] - 1
    assert figures["run_speed"][end_to_end.RUN] == seconds[end_to_end.BARE] / seconds[end_to_end.RUN]


def test_a_pass_under_a_probe_is_of_all_sentences_once(tmp_path: Path) -> None:
    generated.write_model(tmp_path, "small")
    loaded = load_model(str(tmp_path), device="cpu")
    batches = end_to_end.batches_of(loaded, generated.sentences(20))
    with end_to_end.passes(loaded, batches) as by_name:
        for one_pass in by_name.values():
            one_pass()
        state = by_name[end_to_end.MOMENTS]()
    assert isinstance(state, ConeState)
    inputs = [{"input_ids": batch, "attention_mask": batch.new_ones(batch.shape)} for batch in batches]
    assert_statistics_of(state, [(hidden_states(loaded.model, one), one["attention_mask"]) for one in inputs])
