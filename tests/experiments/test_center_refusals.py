"""What `center` refuses before anything is read or run, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cone_kernels import ConeState
from cone_kernels.experiments.centering import center, center_of
from cone_kernels.experiments.held_out import Judged
from cone_kernels.experiments.vectors import vectors
from cone_kernels.runs.measurement import from_state
from tests.experiments.test_rotation import of_rows
from tests.support.moment_cases import normal

ROWS = normal(64, 4).numpy()


def state(**options: Any) -> ConeState:
    """Of one layer with second moments."""
    found = ConeState.empty([0], 4, second_moment=True, **options)
    found.sentence.update(torch.from_numpy(ROWS))
    return found


NO_PAIRS = "pairs: got some without a model and a corpus; their texts must go through a model"
STATE, VECTORS = {"state": state()}, {"vectors": ROWS}
MODEL = {"model": "no such model", "corpus": ["w5"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "model, corpus, state: got none; it must be a model and a corpus, or a state, or all three"),
        ({"model": "m"}, "corpus: got none; it must be given, for a run needs a model and a corpus"),
        ({"corpus": ["w5"]}, "model: got none; it must be given, for a run needs a model and a corpus"),
        ({**MODEL, "components": 2}, "components: got 2"),
        ({**MODEL, "scale": 2.0}, "scale: got 2.0 without vectors; it must be left out"),
        ({**MODEL, "write": "v.npy"}, "write: got 'v.npy' without vectors; it must be left out"),
        ({**MODEL, "output": "s3://a"}, "output: got 's3://a'; it must be a path of this machine"),
        ({**VECTORS, "write": "s3://a.npy"}, "write: got 's3://a.npy'; it must be a path of this machine"),
        ({**STATE, "limit": 3}, "limit: got a value together with a state; nothing is run, so leave it out"),
        ({**STATE, "pooling": "cls"}, "pooling: got 'cls' with a state alone; it must be left out, for nothing is run"),
        ({**STATE, "pairs": "p.csv"}, NO_PAIRS),
        ({**VECTORS, "pairs": "p.csv"}, NO_PAIRS),
        ({**VECTORS, **MODEL, "pairs": "p.csv"}, NO_PAIRS),
        ({**MODEL, "measure": "auc"}, "measure: got 'auc' without pairs; name the file of labelled pairs"),
        (
            {**VECTORS, **MODEL, "pooling": "cls", "dtype": "float64", "shuffle": True},
            "model, corpus, pooling, dtype, shuffle: got a value together with vectors; no model is run",
        ),
        ({**VECTORS, "shard": "0/2"}, "shard: got '0/2'; a centering is fitted on all vectors"),
        ({**VECTORS, "field": ["a", "b"]}, "field: got a, b; it must be one, which holds the vectors"),
        ({**VECTORS, "field": "a"}, "field: got a value for vectors given in Python; leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        center(**options)
    assert str(raised.value).startswith(words)


def test_pairs_are_read_before_it_is_seen_that_a_model_or_a_corpus_is_missing(tmp_path: Path) -> None:
    for options in ({"model": "m"}, {"corpus": ["w5"]}):
        with pytest.raises(FileNotFoundError):
            center(pairs=tmp_path / "none.csv", **options)


def test_options_at_their_defaults_and_a_field_of_a_file_are_taken(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", a=ROWS, b=ROWS[:32])
    for field in ("b", ["b"]):
        found = center(vectors=tmp_path / "v.npz", field=field, pooling="mean", sample=None, shuffle=False)
        assert found.before.count == 32
    assert center(vectors=ROWS, field=[]).before.count == 64


def test_second_moments_are_kept_where_the_fit_is_on_the_vectors_and_needs_them(tmp_path: Path) -> None:
    saved = vectors(ROWS, axis=1).state  # with second moments
    saved.save(tmp_path / "other.safetensors")
    for options, kept in (
        ({"method": "mean"}, False),
        ({"method": "whitening"}, True),
        ({"method": "whitening", "state": tmp_path / "other.safetensors"}, False),
        ({"method": "mean", "state": tmp_path / "other.safetensors"}, False),
    ):
        found = center(vectors=ROWS[::2], **options)
        assert found.manifest["options"]["second_moment"] is kept
        of_state = "state" in options
        assert found.fitted_on == {"state": "other" if of_state else None, "sentences": 64 if of_state else 32}
        assert (found.file, found.manifest["written"], found.layer) == (None, None, "output")


def test_files_are_named_where_they_are_written(tmp_path: Path) -> None:
    found = center(vectors=ROWS, output=tmp_path / "c", write=str(tmp_path / "v.npy"))
    assert (found.file, found.manifest["written"]) == (str(tmp_path / "c"), str(tmp_path / "v.npy"))
    alone = center(state=state(), output=tmp_path / "d")
    assert (alone.file, alone.fitted_on["state"], alone.fitted_on["sentences"]) == (str(tmp_path / "d"), None, 64)
    assert (tmp_path / "d").exists()
    assert center(state=state()).file is None


def with_output(**about: Any) -> ConeState:
    found = state(info={"model": {"architecture": "A", "output": about}})
    found.add_output(torch.from_numpy(ROWS), torch.arange(64))
    return found


def test_vectors_made_otherwise_are_not_centred() -> None:
    cls = ConeState.empty([0], 4, pooling="cls")
    cls.sentence.update(torch.from_numpy(ROWS))
    with pytest.raises(ValueError, match="state: got one of the pooling 'mean'; it must be 'cls', as what it is"):
        center_of(from_state(cls), fitted_on=from_state(state()))
    about = {"modules": ["T", "P"], "pooling": "mean", "dim": 4, "include_prompt": True, "weights": "ab"}
    fitted, measured = with_output(**about), with_output(**{**about, "pooling": "cls"})
    with pytest.raises(ValueError) as raised:
        center_of(from_state(measured), fitted_on=from_state(fitted))
    kind = "modules ['T', 'P'], pooling {}, dim 4, include_prompt True"
    assert str(raised.value) == (
        f"state: got one of the output {kind.format('mean')!r}; it must be {kind.format('cls')!r}, as what it is "
        "measured on"
    )
    # Weights may differ, and where the output is not looked at, so may that.
    other = with_output(**{**about, "weights": "cd"})
    assert center_of(from_state(other), fitted_on=from_state(fitted)).layer == "output"
    assert center_of(from_state(measured), layer=0, fitted_on=from_state(fitted)).layer == 0


def test_the_layer_that_was_fitted_is_the_one_that_is_measured() -> None:
    """Not the output of the state, which is what it would be by itself: the same rows are judged in quarters."""
    fitted = state()
    fitted.add_output(torch.from_numpy(2 - ROWS), torch.arange(64))
    for layer in (None, -1):
        found = center_of(of_rows(torch.from_numpy(ROWS), "m"), layer=layer, fitted_on=from_state(fitted))
        assert isinstance(found.held_out, Judged)
        assert (found.layer, found.held_out.folds, found.centering.layer) == (0, 4, 0)
