"""What the arguments of a call say of its batch: every form that is taken, and exactly what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels.probe.batch_arguments import (
    BatchNotes,
    checked_mask,
    has_gaps,
    mask_values,
    n_padding,
    n_sentences,
    refuse_cache,
    refuse_packed_rows,
    sentence_starts,
    token_mask,
    tokens_of,
)
from cone_kernels.probe.positions import Positions

HINT = "; say which tokens count by next_batch(mask=...)"
NOTHING = BatchNotes()
CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9, 4]])


def padding_is(token: int | None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(pad_token_id=token))


NO_MASK = "it must be bool or 0/1 integers (B, T)"


@pytest.mark.parametrize(("name", "hint"), [("mask", HINT), ("attention_mask", HINT), ("special", "")])
@pytest.mark.parametrize(
    ("mask", "kind", "words"),
    [
        ([[1, 0]], TypeError, "got list; it must be a tensor (B, T)"),
        (torch.ones(2), ValueError, f"got torch.float32 of shape (2,); {NO_MASK}"),
        (torch.ones(2, dtype=torch.bool), ValueError, f"got torch.bool of shape (2,); {NO_MASK}"),
        (torch.ones(1, 1, 2, dtype=torch.int64), ValueError, f"got torch.int64 of shape (1, 1, 2); {NO_MASK}"),
        (torch.ones(1, 2, dtype=torch.bfloat16), ValueError, f"got torch.bfloat16 of shape (1, 2); {NO_MASK}"),
        (torch.ones(1, 2, dtype=torch.complex64), ValueError, f"got torch.complex64 of shape (1, 2); {NO_MASK}"),
        (
            torch.tensor([[2]]),
            ValueError,
            "got values other than 0 and 1; it must say for each token whether it counts",
        ),
        (
            torch.tensor([[1, 2]]),
            ValueError,
            "got values other than 0 and 1; it must say for each token whether it counts",
        ),
    ],
)
def test_a_mask_is_bool_or_integers_of_tokens(
    name: str, hint: str, mask: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as refused:
        checked_mask(mask, name)
    assert str(refused.value) == f"{name}: {words}{hint}"


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_mask_of_integers_is_0_and_1(dtype: torch.dtype) -> None:
    for values in ([[1, 0], [0, 1]], [[0, 0]], [[1, 1]]):
        given = torch.tensor(values).to(dtype)
        assert checked_mask(given, "mask").tolist() == [[value == 1 for value in row] for row in values]
    assert checked_mask(torch.ones(0, 2, dtype=dtype), "mask").shape == (0, 2)
    largest = torch.iinfo(dtype).max
    for value in (2, largest, -1 if dtype.is_signed else largest - 1):
        mask = torch.tensor([[0, value]], dtype=dtype)
        with pytest.raises(ValueError, match="got values other than 0 and 1"):
            checked_mask(mask, "mask")


def test_a_mask_of_bool_is_taken_as_it_is() -> None:
    mask = torch.tensor([[True, False]])
    assert checked_mask(mask, "mask") is mask


@pytest.mark.parametrize(
    ("rows", "gaps"),
    [([[1, 1, 0]], False), ([[0, 0, 0]], False), ([[1], [0]], False), ([[0, 1]], True), ([[1, 1], [0, 1]], True)],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_a_gap_is_a_0_with_a_1_after_it(rows: list[list[int]], gaps: bool, dtype: torch.dtype) -> None:
    assert has_gaps(torch.tensor(rows).to(dtype)) is gaps


def test_a_cache_with_earlier_tokens_is_refused() -> None:
    refuse_cache({"input_ids": IDS, "past_key_values": None, "mems": [torch.zeros(2, 2)]})
    with pytest.raises(ValueError, match="mems") as refused:
        refuse_cache({"input_ids": IDS, "mems": [torch.ones(2, 2)]})
    assert str(refused.value) == (
        "mems: got a cache with earlier tokens; it must be empty, as a probed forward takes in whole sentences "
        "(generate() continues them; probe the forward on the prompt alone)"
    )


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({}, "none"),
        ({"input_ids": None, "inputs_embeds": [1]}, "none"),
        ({"input_ids": torch.ones(3)}, "shape (3,)"),
        ({"input_ids": torch.ones(0, 3), "inputs_embeds": torch.ones(2, 3, 4)}, "shape (0, 3)"),
        ({"inputs_embeds": torch.ones(2, 0, 4)}, "shape (2, 0, 4)"),
    ],
)
def test_a_batch_without_tokens_is_refused(arguments: dict[str, Any], got: str) -> None:
    with pytest.raises(ValueError, match="input_ids") as refused:
        tokens_of(arguments)
    assert str(refused.value) == (
        f"input_ids or inputs_embeds: got {got}; it must be at least one token, (B, T) or (B, T, D), or one of "
        "pixel_values, input_features, input_values (of a SentenceTransformer probe the model inside, "
        "model[0].auto_model)"
    )


def test_tokens_are_ids_or_embeddings() -> None:
    embedded = torch.ones(1, 1, 0)
    assert tokens_of({"input_ids": IDS}) is IDS
    assert tokens_of({"input_ids": None, "inputs_embeds": embedded}) is embedded


def test_every_token_counts_unless_a_mask_says_otherwise() -> None:
    given, noted = torch.tensor([[1, 0]]), torch.tensor([[False, True]])
    for arguments, notes, wanted in (
        ({}, NOTHING, [[True, True]]),
        ({"attention_mask": given}, NOTHING, [[True, False]]),
        ({"attention_mask": given}, BatchNotes(mask=noted), [[False, True]]),
    ):
        mask, unchecked = token_mask(arguments, notes, (1, 2), CPU)
        assert (mask.tolist(), mask.dtype, unchecked) == (wanted, torch.bool, None)


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((2, 3), ""),
        ((1, 4), ""),
        ((3, 4), ""),
        ((2, 5), " (continuing from a key-value cache cannot be probed)"),
    ],
)
def test_a_mask_is_of_the_shape_of_the_tokens(shape: tuple[int, int], more: str) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    for name, arguments, notes in (
        ("attention_mask", {"attention_mask": mask}, NOTHING),
        ("mask", {"attention_mask": torch.ones(2, 4, dtype=torch.bool)}, BatchNotes(mask=mask)),
    ):
        with pytest.raises(ValueError, match="as the tokens") as refused:
            token_mask(arguments, notes, (2, 4), CPU)
        assert str(refused.value) == f"{name}: got shape {shape}; it must be (2, 4) as the tokens{more}"


def test_the_mask_of_a_sound_is_checked_later() -> None:
    model: Any = SimpleNamespace()
    mask = torch.tensor([[3, 0]])
    assert mask_values(Positions(model, "input_values", torch.ones(1, 9))) is None
    values = mask_values(Positions(model, "input_values", torch.ones(1, 9), mask))
    assert values is not None
    assert values() is mask
    with pytest.raises(ValueError, match=r"^pixel_attention_mask: got torch.float32 of shape \(1, 2\)"):
        mask_values(Positions(model, "pixel_values", torch.ones(1, 9), mask.float(), "pixel_attention_mask"))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, 0),
        ({"input_ids": [[1, 2]]}, 0),
        ({"input_ids": torch.ones(3)}, 0),
        ({"input_ids": torch.ones(3, 2)}, 3),
        ({"inputs_embeds": torch.ones(3, 2, 4)}, 3),
        ({"pixel_values": torch.ones(4, 3, 2, 2)}, 4),
        # Of sounds no argument says where sentences begin.
        ({"input_values": torch.ones(1, 6), "position_ids": torch.tensor([[0, 1, 0, 1, 0, 1]])}, 1),
        ({"input_ids": IDS, "cu_seq_lens_q": torch.tensor([0, 2, 6])}, 2),
        ({"input_ids": IDS, "cu_seq_lens_q": torch.tensor([0, 2, 5, 6])}, 2),  # the last one is padding
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, 2),
        ({"inputs_embeds": torch.ones(1, 6, 3), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, 2),
    ],
)
def test_how_many_sentences_a_call_takes_in(arguments: dict[str, Any], wanted: int) -> None:
    assert n_sentences(padding_is(4), arguments) == wanted


def starts_of(*, notes: BatchNotes = NOTHING, **arguments: Any) -> list[int] | None:
    found = sentence_starts(arguments, (1, 6), notes)
    assert found is None or found.dtype == torch.int64
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ([0, 1, 2, 3, 4, 5], None),
        ([0, 1, 2, 0, 1, 0], [0, 3, 5, 6]),
        ([2, 3, 4, 5, 2, 3], [0, 4, 6]),
        ([0, 1, 2, 1, 2, 3], [0, 3, 6]),  # back, and not to the first one
        ([0, 1, 1, 2, 3, 4], [0, 2, 6]),
        ([0, 0, 1, 2, 3, 4], [0, 1, 6]),
        ([0, 0, 0, 0, 0, 0], None),  # says nothing
    ],
)
def test_a_sentence_begins_where_positions_start_again(positions: list[int], wanted: list[int] | None) -> None:
    assert starts_of(position_ids=torch.tensor([positions])) == wanted


def test_what_says_where_sentences_begin() -> None:
    positions, numbers = torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.tensor([[7, 7, 3, 3, 3, 9]])
    assert starts_of() is None
    assert starts_of(seq_idx=numbers) == [0, 2, 5, 6]
    assert starts_of(seq_idx=numbers, position_ids=positions) == [0, 2, 5, 6]
    assert starts_of(seq_idx=numbers.tolist(), position_ids=positions) == [0, 3, 6]
    assert starts_of(seq_idx=numbers[:, :5], position_ids=positions) == [0, 3, 6]
    assert starts_of(seq_idx=torch.zeros(1, 6)) is None
    given = torch.tensor([0, 1, 6], dtype=torch.int32)
    assert starts_of(cu_seq_lens_q=given, seq_idx=numbers, attention_mask=torch.ones(1, 6)) == [0, 1, 6]
    # With a mask one row is one sentence, and so is each of several rows.
    assert starts_of(seq_idx=numbers, attention_mask=torch.ones(1, 6)) is None
    assert starts_of(seq_idx=numbers, notes=BatchNotes(mask=torch.ones(1, 6, dtype=torch.bool))) is None
    assert sentence_starts({"seq_idx": numbers.expand(2, 6)}, (2, 6), NOTHING) is None


@pytest.mark.parametrize(
    ("starts", "size", "got"),
    [
        ([0, 6], (1, 6), "list with tokens (1, 6)"),
        (torch.tensor([0, 6]), (2, 3), "torch.int64 of shape (2,) with tokens (2, 3)"),
        (torch.tensor([[0, 6]]), (1, 6), "torch.int64 of shape (1, 2) with tokens (1, 6)"),
        (torch.tensor([0.0, 6.0]), (1, 6), "torch.float32 of shape (2,) with tokens (1, 6)"),
    ],
)
def test_starts_that_are_no_integers_of_one_row_are_refused(starts: Any, size: tuple[int, int], got: str) -> None:
    with pytest.raises(ValueError, match="cu_seq_lens_q") as refused:
        sentence_starts({"cu_seq_lens_q": starts}, size, NOTHING)
    assert str(refused.value) == f"cu_seq_lens_q: got {got}; it must be integers (B + 1,) with tokens (1, N)"


def test_every_token_of_a_flattened_batch_counts() -> None:
    notes = BatchNotes(mask=torch.ones(1, 6, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"^mask: got one for a batch with cu_seq_lens_q; it must be None, as every tok"
    ):
        starts_of(cu_seq_lens_q=torch.tensor([0, 6]), notes=notes)


@pytest.mark.parametrize(
    ("ids", "starts", "wanted"),
    [
        ([[5, 6, 0, 7, 0, 0]], [0, 2, 3, 4, 5, 6], 2),  # the first one that is padding stands in their midst
        ([[5, 6, 7, 8, 0, 0]], [0, 2, 4, 6], 0),  # of two tokens
        ([[5, 6, 7, 8, 0, 3]], [0, 2, 4, 5, 6], 0),
        ([[5, 6, 7, 8, 9, 0]], [0, 5, 6], 1),
        ([[0, 0]], [0, 1, 2], 2),
        ([[5, 0]], [0, 1, 2], 1),
        ([[5, 0]], [0, 2], 0),
        ([[5, 0]], [0], 0),
        ([[5, 0]], [0, 2, 3], 1),  # does not fit, which others say
        ([[[5.0], [0.0]]], [0, 1, 2], 0),
        (None, [0, 1, 2], 0),
    ],
)
def test_padding_is_sentences_of_one_padding_token_at_the_end(ids: Any, starts: list[int], wanted: int) -> None:
    arguments = {"input_ids": None if ids is None else torch.tensor(ids)}
    assert n_padding(padding_is(0), arguments, torch.tensor(starts)) == wanted
    assert n_padding(padding_is(None), arguments, torch.tensor(starts)) == 0


@pytest.mark.parametrize(
    ("positions", "mask", "packed"),
    [
        ([[0, 1, 2, 3]], [[1, 1, 1, 1]], False),
        ([[0, 1, 0, 1]], [[1, 1, 1, 1]], True),
        ([[0, 1, 2, 3], [0, 1, 2, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]], True),
        ([[0, 0, 0, 0], [0, 1, 1, 2]], [[1, 1, 1, 1], [1, 1, 1, 1]], True),
        ([[0, 0, 0, 0]], [[1, 1, 1, 1]], False),
        ([[0, 0, 1, 0]], [[0, 1, 1, 1]], True),
        # Padding before the tokens and after them has positions of any kind.
        ([[1, 1, 0, 1]], [[0, 0, 1, 1]], False),
        ([[0, 1, 2, 0]], [[1, 1, 1, 0]], False),
        ([[0, 1, 0]], [[1, 1, 1, 1]], False),  # of something else than these tokens
    ],
)
def test_rows_of_several_sentences_are_refused(positions: list[list[int]], mask: list[list[int]], packed: bool) -> None:
    arguments: dict[str, Tensor] = {"position_ids": torch.tensor(positions)}
    tokens = torch.tensor(mask, dtype=torch.bool)
    refuse_packed_rows({}, tokens)
    if not packed:
        refuse_packed_rows(arguments, tokens)
        return
    with pytest.raises(ValueError, match="position_ids") as refused:
        refuse_packed_rows(arguments, tokens)
    assert str(refused.value) == (
        f"position_ids: got positions that start again within a row of tokens {tuple(tokens.shape)}; it must be one "
        "sentence a row, or one row (1, N) of all sentences without a mask"
    )
