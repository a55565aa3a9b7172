"""What a state file may say of itself: every bound from both sides, in any order, aligned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cone_kernels import ConeState, Moments
from cone_kernels.state import file as state_file
from cone_kernels.state.file import StateFileError
from cone_kernels.sums import PRODUCT_FIELDS, SENTENCE_FIELDS, TOKEN_FIELDS

LARGEST = 2**31 - 1


def checked(**changes: Any) -> tuple[str, tuple[int, ...], int, list[str]]:
    identity = {"level": "sentence", "layers": [0], "dim": 4, "fields": list(SENTENCE_FIELDS)} | changes
    levels = {"sentence": SENTENCE_FIELDS, "token": TOKEN_FIELDS}
    return state_file.checked_identity("f", identity, levels, PRODUCT_FIELDS)


def test_what_is_just_within_the_bounds_is_taken() -> None:
    fields = list(SENTENCE_FIELDS)
    assert checked(layers=[LARGEST, -LARGEST]) == ("sentence", (LARGEST, -LARGEST), 4, fields)
    assert checked(layers=[]) == ("sentence", (), 4, fields)
    assert checked(dim=1) == ("sentence", (0,), 1, fields)
    assert checked(dim=LARGEST) == ("sentence", (0,), LARGEST, fields)
    assert checked(level="token", fields=list(TOKEN_FIELDS)) == ("token", (0,), 4, list(TOKEN_FIELDS))
    for more in (PRODUCT_FIELDS[:1], PRODUCT_FIELDS[1:2], PRODUCT_FIELDS):
        assert checked(fields=[*fields, *more])[3] == [*fields, *more]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"layers": layers}, "layers are .* they must be distinct integers")
            for layers in ([LARGEST + 1], [-LARGEST - 1], [3, 3], [0, True], [0, 1.0], [0, "1"], [0, None])
        ),
        ({"layers": (0,)}, r"layers is \(0,\); it must be of type list"),
        ({"dim": 0}, "dim is 0; it must be 1 or more"),
        ({"dim": LARGEST + 1}, "dim is 2147483648; it must be 1 or more"),
        ({"dim": True}, "dim is True; it must be of type int"),
        ({"level": "token"}, "fields are .*; sentence_sq_sum, .*n_cancelled must be there too"),
        ({"fields": list(reversed(SENTENCE_FIELDS))}, "fields are .*; they must be"),
        ({"fields": [*SENTENCE_FIELDS, *reversed(PRODUCT_FIELDS)]}, "fields are .*; they must be"),
        ({"fields": [*SENTENCE_FIELDS, "second_moment", "second_moment"]}, "fields are .*; they must be"),
        ({"more": 1}, "header: got"),
    ],
)
def test_what_is_just_beyond_them_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StateFileError, match=f"^f: {words}"):
        checked(**changes)


@pytest.mark.parametrize(("count", "fits"), [(2**48, True), (2**48 + 1, False)])
def test_a_count_is_2_to_the_48_at_most(count: int, fits: bool) -> None:
    moments = Moments.empty("sentence", [0], 3)
    moments.n_zero[0, 63] = count
    if fits:
        assert int(Moments.restore("m", moments.sums, moments.identity()).n_zero.sum()) == count
    else:
        with pytest.raises(StateFileError, match="n_zero has a count above 281474976710656, more than there can be"):
            Moments.restore("m", moments.sums, moments.identity())


@pytest.mark.parametrize(("times", "fits"), [(1.0, True), (1.0005, True), (1.0015, False)])
def test_unit_vectors_add_up_to_no_more_than_their_number_but_for_rounding(times: float, fits: bool) -> None:
    moments = Moments.empty("sentence", [0], 3)
    moments.update(torch.tensor([[1.0, 0, 0]]).expand(3, 3), sentence_ids=torch.tensor([0, 16, 17]))
    assert moments.count[0].unique().tolist() == [0, 1, 2]
    moments.unit_sum.mul_(times)
    if fits:
        assert Moments.restore("m", moments.sums, moments.identity()).fingerprint() == moments.fingerprint()
    else:
        with pytest.raises(StateFileError, match="unit_sum of sentence is longer than its count of unit vectors"):
            Moments.restore("m", moments.sums, moments.identity())


@pytest.mark.parametrize("missing", ["cubic_sum", "quartic_sum"])
def test_second_moments_have_all_that_their_estimates_need(missing: str) -> None:
    moments = Moments.empty("sentence", [0], 3, second_moment=True)
    identity = moments.identity() | {"fields": [name for name in moments.fields if name != missing]}
    with pytest.raises(StateFileError, match="second_moment must have cubic_sum and quartic_sum with it"):
        Moments.restore("m", {name: moments.sums[name] for name in identity["fields"]}, identity)


def test_equal_states_are_equal_files_in_whatever_order_their_info_was_made(tmp_path: Path) -> None:
    one, other = (ConeState.empty([0], 3, info=info) for info in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one.save(tmp_path / "one") == other.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_what_json_has_no_number_for_is_not_written(tmp_path: Path) -> None:
    state = ConeState.empty([0], 3, info={"a": math.nan})
    with pytest.raises(ValueError, match="JSON"):
        state.fingerprint()
    with pytest.raises(ValueError, match="JSON"):
        state.save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_tensors_stay_aligned_whatever_the_length_of_the_header() -> None:
    for length in range(8):
        content = state_file._in_order(safetensors.torch.save({"a": torch.arange(3)}, {"b": "c" * length}))
        assert int.from_bytes(content[:8], "little") % 8 == 0
        assert safetensors.torch.load(content)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("info", "kind"), [([1, {}], "list"), (7, "int"), ("state", "str"), (None, "NoneType")])
def test_a_header_is_an_object(info: object, kind: str, tmp_path: Path) -> None:
    metadata = {"schema": state_file.SCHEMA, "info": json.dumps(info), "sha256": ""}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "s", metadata)
    with pytest.raises(
        StateFileError, match=rf"s: got a header of {kind}; it must be \['sentence', 'state', 'token'\]"
    ):
        ConeState.load(tmp_path / "s")
