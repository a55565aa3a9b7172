"""What a comparison says, shows and writes: on changes made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cone_kernels.experiments.compare_result import (
    Change,
    ComparedLayer,
    CompareResult,
    DirectionChange,
    RandomCosine,
)
from cone_kernels.experiments.cone_change import ConeChange
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.names import OUTPUT, Layer
from cone_kernels.statistics.claims import Claim
from cone_kernels.statistics.subspaces import Overlap

UNKNOWN = DirectionChange(math.nan, math.nan)
CALM = Dependence(0.0, 0.2)
ALIKE = Dependence(0.5, 0.2)


def change(difference: float, significant: bool = True, a: float = 0.5) -> Change:
    return Change(a, a + difference, difference, 0.01, 7, 0.001, 0.002, significant)


NONE = change(0.0, False)


def cone(removed: float = 0.0, new: float = 0.0) -> ConeChange:
    """What is gone along the old mean and what is new across it, all of it told from noise where it is not 0."""
    gone, come = (Claim(one, 0.0, 0.001, 0.02) for one in (removed, new))
    return ConeChange(0.5, 0.6, 0.4, gone, come, removed_stderr=0.01, new_stderr=0.02)


def direction(
    corrected: float, cosine: float = 0.5, bound: float = 0.01, axes: int = 1, **other: float
) -> DirectionChange:
    numbers = {"value": corrected, "corrected": corrected, "stderr": 0.002, "noise": 0.1, **other}
    return DirectionChange(cosine, 0.1, Overlap(axes=axes, degrees=30, **numbers), bound)


def row(layer: Layer, sentence: Change = NONE, token: Change | None = NONE, **other: Any) -> ComparedLayer:
    fields = {"gap": token, "within": token, "between": token, "predicted": token, "axis": UNKNOWN, "mean": UNKNOWN}
    return ComparedLayer(layer, f"block {layer}", sentence, token, **{**fields, "cone": cone(), **other})


def output(sentence: Change = NONE, **other: Any) -> ComparedLayer:
    return row(OUTPUT, sentence, None, **other)


def result(*rows: ComparedLayer, **other: Any) -> CompareResult:
    a, b = (dict[str, Any](name=name, model={}, state_fingerprint=name) for name in ("old", "new"))
    given: dict[str, Any] = {
        "paired": True,
        "pairing": "as asked for",
        "alpha": 0.05,
        "dependence": (CALM, CALM),
        "corpus": {},
    }
    given |= {"random_cosine": RandomCosine(64, 0.1, 0.25), "manifest": {}}
    return CompareResult(a, b, layers=rows, **{**given, **other})


def test_cones_that_opened_and_tightened_are_told_at_their_layers() -> None:
    rows = row(0, change(-0.1)), row(1, change(-0.2)), row(2, change(0.3)), row(3, change(-0.4, False)), row(4, NONE)
    assert result(*rows).summary() == (
        "From old to new the cone opened at layers 0 and 1, most at layer 1: the mean cosine of two sentences fell "
        "from 0.5000 to 0.3000 there.",
        "It tightened at layer 2: the mean cosine of two sentences rose from 0.5000 to 0.8000 there.",
    )
    (said,) = result(*rows[2:]).summary()
    assert said.startswith("From old to new the cone tightened at layer 2: ")
    (said,) = result(row(0, change(0.1)), output(change(0.2))).summary()
    assert said.startswith("From old to new the cone tightened at layer 0 and the output, most at the output: ")
    (said,) = result(row(0, NONE), output(change(0.2))).summary()
    assert said.startswith("From old to new the cone tightened at the output: ")
    assert result(output(change(-0.2))).summary() == (
        "From old to new the cone opened: the mean cosine of two vectors fell from 0.5000 to 0.3000.",
    )


def test_a_cone_that_did_not_change_is_said_not_to_have() -> None:
    unknown = replace(NONE, p_value=math.nan)
    said = "From old to new the cone did not change by more than chance at any layer (0.05 for all layers together)."
    assert result(row(0), row(1, unknown)).summary() == (said,)
    assert result(row(0, unknown)).summary() == ()
    words = "From old to new the cone did not change by more than chance (0.01)."
    assert result(output(), alpha=0.01).summary() == (words,)


def test_states_of_one_fingerprint_are_the_same() -> None:
    found = result(row(0, change(0.1)))
    same = replace(found, b={**found.b, "state_fingerprint": "old"})
    assert same.summary() == ("old and new are the same state, to the last bit.",)


def test_two_prompts_are_told_first_and_an_output_that_is_left_out_after_what_changed() -> None:
    found = result(row(0, change(0.1), gap=change(0.2)), without_output="it is wide")
    prompted = replace(found, b={**found.b, "model": {"prompt": "query: "}})
    prompts, _, left_out, gap = prompted.summary()
    assert prompts == ("The prompts differ: old was measured without a prompt, new with the prompt “query: ”.")
    assert left_out == "The models' own output is left out: it is wide."
    assert gap == "What pooling adds to it rose at layer 0 (by up to 0.2000)."
    assert len(found.summary()) == 3


def test_tokens_alone_may_change() -> None:
    # Of several the largest is told, whichever its sign.
    rows = [row(at, token=change(one), gap=NONE) for at, one in enumerate((-0.1, -0.3, 0.05, 0.02))]
    assert result(*rows).summary() == (
        "The mean cosine of two tokens fell at layers 0 and 1 (by up to 0.3000) and rose at layers 2 and 3 (by up to "
        "0.0500).",
    )


def test_what_became_of_a_cone_is_told_where_most_of_it_did() -> None:
    rows = [row(at, cone=cone(*parts)) for at, parts in enumerate(((0.3, 0.0), (0.1, 0.2), (0.2, 0.4), (-0.1, 0.0)))]
    rows += [row(4, cone=cone(0.0, 0.1), axis=direction(0.5, noise=0.6)), row(5, cone=cone(0.0, 0.3))]
    _, removed, turned, grew, added = result(*rows).summary()
    assert removed == (
        "At layer 0 the cone was removed, wholly or in part, and did not turn; of a mean cosine of 0.500, 0.300 (s.e. "
        "0.010) is gone along the old mean, and across it 0.000 (s.e. 0.020) is new."
    )
    assert turned.startswith(
        "At layers 1 and 2 the cone turned: part of it is gone, and another is there in its place; at layer 2 of a "
        "mean cosine of 0.500, 0.200 (s.e. 0.010) is gone"
    )
    assert grew.startswith("At layer 3 the cone grew along its old direction; to a mean cosine of 0.500, 0.100 (s.e.")
    assert added.startswith("At layers 4 and 5 the cone is as before, and another is there across it; at layer 5 of a")
    assert "the space of the top axes" not in added
    # What is gone counts as much as what is new, whatever its sign.
    _, said = result(row(0, cone=cone(-0.3, 0.1)), row(1, cone=cone(-0.2, 0.1))).summary()
    assert "; at layer 0 to a mean cosine" in said


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        (direction(0.5), "turned there"),
        (direction(0.99), "is the same there"),
        (direction(0.5, noise=0.6), "is not told to have turned there"),
    ],
)
def test_the_space_of_the_axes_is_told_beside_the_cone(axis: DirectionChange, words: str) -> None:
    said = result(row(0, cone=cone(0.3), axis=axis)).summary()[1]
    assert said.endswith(f"is new; the space of the top axes {words}.")


def test_of_vectors_no_layer_is_told() -> None:
    said = result(output(cone=cone(0.3))).summary()[1]
    assert said.startswith("The cone was removed, wholly or in part, and did not turn; of a mean cosine of 0.500")
    said = result(output(mean=direction(0.5, 0.7)), output_random_cosine=RandomCosine(8, 0.3, 0.6)).summary()[1]
    assert said == "The mean turned: |cos| is 0.700."
    said = result(output(axis=direction(0.5, axes=2))).summary()[1]
    assert said == "The space of the top 2 axes turned: overlap 0.500 (from 0.49 to 0.51 with its error)."


def test_a_direction_that_turned_is_told_where_it_turned_most() -> None:
    rows = [row(at, mean=direction(one, cosine=one)) for at, one in enumerate((0.7, 0.3, 0.5))]
    assert result(*rows).summary()[1] == "The mean turned most at layer 1: |cos| is 0.300 there."
    # Twice that of the layers, in the width of the output.
    rows.append(output(mean=direction(0.26, 0.26)))
    found = result(*rows, output_random_cosine=RandomCosine(16, 0.2, 0.26))
    assert found.summary()[1] == (
        "The mean turned most at the output: |cos| is 0.260 there, no more than two random directions may have (95% "
        "are below 0.260)."
    )
    rows[3] = output(mean=direction(0.9, 0.26))
    assert replace(found, layers=tuple(rows)).summary()[1].endswith("|cos| is 0.300 there.")


def test_the_space_of_several_axes_is_told_with_both_ends_of_its_interval() -> None:
    turned = direction(0.5, axes=3, bound=0.25, value=0.375)
    (_, said) = result(row(0, axis=turned)).summary()
    assert said == (
        "The space of the top 3 axes turned most at layer 0: overlap 0.375 there (from 0.12 to 0.75 with its error)."
    )
    (_, said) = result(row(0, axis=direction(0.5, axes=3, bound=0.25, value=0.0625))).summary()
    assert "(from 0.00 to 0.75 with its error)" in said


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (
            [direction(0.99, 0.96), direction(0.99, 0.95)],
            "The cone's axis points the same way in both: |cos| is at least 0.950.",
        ),
        ([direction(0.99, 0.96), UNKNOWN], "The cone's axis points the same way in both: |cos| is at least 0.960."),
        (
            [direction(0.97, 0.5), direction(0.98, 0.99)],
            "The space of the top axes is the same in both: overlap at least 0.970.",
        ),
    ],
)
def test_axes_that_are_the_same_everywhere_are_said_to_be(axes: Sequence[DirectionChange], words: str) -> None:
    assert result(*(row(at, axis=one) for at, one in enumerate(axes))).summary()[1:] == (words,)


def test_of_directions_that_may_be_the_same_nothing_is_said() -> None:
    assert len(result(row(0)).summary()) == 1
    assert len(result(row(0, axis=direction(0.99, 0.5)), row(1, axis=direction(0.9, 0.5))).summary()) == 1


@pytest.mark.parametrize(
    ("found", "known", "verdict"),
    [
        (direction(0.89, noise=0.499), True, "turned"),
        (direction(0.89, noise=0.5), False, "undecided"),
        (direction(0.92), True, "same"),
        (direction(0.9), True, "undecided"),
        # The overlap as it is, and the one without noise, are the ends of what may be.
        (direction(0.89, value=0.99), True, "turned"),
        (direction(0.99, value=0.89), True, "undecided"),
        (UNKNOWN, False, "undecided"),
    ],
)
def test_a_direction_turned_or_is_the_same_or_neither_is_told(
    found: DirectionChange, known: bool, verdict: str
) -> None:
    """0.95 is the |cos| of directions that are the same: 0.9025 squared."""
    assert (found.known, found.verdict, found.turned) == (known, verdict, verdict == "turned")


def test_neighbours_that_are_alike_are_told_once_of_the_same_rows_and_of_each_state_otherwise() -> None:
    paired = result(row(0), dependence=(CALM, ALIKE)).summary()
    assert len(paired) == 2
    assert paired[1].startswith("Neighbouring sentences are alike over long stretches")
    apart = result(row(0), dependence=(CALM, ALIKE), paired=False).summary()
    assert [line[:34] for line in apart[1:]] == ["Neighbouring sentences of new are "]
    apart = result(output(), dependence=(ALIKE, ALIKE), paired=False).summary()
    assert [line[:32] for line in apart[1:]] == ["Neighbouring vectors of old are ", "Neighbouring vectors of new are "]


def test_json_of_a_layer_and_of_the_output() -> None:
    undefined = replace(NONE, b=math.nan, reason="none")
    layer = row(3, change(0.25), undefined, axis=direction(0.5, 0.625, bound=0.125, value=0.75)).to_dict()
    assert layer["sentence"] == {
        "a": 0.5,
        "b": 0.75,
        "difference": 0.25,
        "stderr": 0.01,
        "p_value": 0.001,
        "p_adjusted": 0.002,
        "degrees_of_freedom": 7,
        "significant": True,
    }
    assert (layer["token"]["b"], layer["token"]["reason"]) == (None, "none")
    assert layer["axis_overlap"] == {
        "axes": 1,
        "value": 0.75,
        "corrected": 0.5,
        "stderr": 0.002,
        "noise": 0.1,
        "low": 0.625,
        "high": 0.625,
    }
    assert (layer["axis_cosine"], layer["axis_sampling"], layer["axis_verdict"]) == (0.625, 0.1, "turned")
    assert (layer["mean_cosine"], layer["mean_overlap"], layer["mean_verdict"]) == (None, None, "undecided")
    last = output().to_dict()
    assert [last[name] for name in ("token", "gap", "within", "between", "predicted")] == [None] * 5
    without = replace(row(2), gap=None).to_dict()
    assert "gap" not in without


def test_the_random_cosine_of_the_output_is_written_where_there_is_one() -> None:
    found = result(row(0), output(), output_random_cosine=RandomCosine(16, 0.2, 0.5))
    assert found.to_dict()["output_random_cosine"] == {"dim": 16, "mean": 0.2, "p95": 0.5}
    assert "output_random_cosine" not in result(row(0)).to_dict()
    assert (found.of_vectors, result(output()).of_vectors) == (False, True)
    assert found.to_dict()["resolution"] == 1e-6


def test_repr_has_a_line_for_every_layer() -> None:
    known = replace(UNKNOWN, cosine=0.25)
    head, names, first, second = repr(result(row(0, change(0.25), mean=known), output())).splitlines()
    assert head == "CompareResult(old -> new, paired)"
    assert names == (
        "  layer         a         b     b - a  (stderr)   p, all        token       gap  |cos| of axes, means"
    )
    assert (
        first
        == "      0    0.5000    0.7500   +0.2500    0.0100     0.002 *   +0.0000   +0.0000            nan, 0.2500"
    )
    assert (
        second == "  output    0.5000    0.5000   +0.0000    0.0100     0.002                                  nan, nan"
    )
    assert repr(result(row(0), paired=False)).startswith("CompareResult(old -> new, unpaired)")
