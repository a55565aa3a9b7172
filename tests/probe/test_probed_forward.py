"""The forward that a call begins: its sentences and rows, the layers that wait, and what is said of what is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels.probe import forward as probed_forward
from cone_kernels.probe.batch_arguments import BatchNotes
from cone_kernels.probe.forward import ProbedForward
from cone_kernels.probe.layer_points import LayerPoint
from cone_kernels.probe.positions import Positions

MODEL: Any = SimpleNamespace(config=SimpleNamespace(pad_token_id=0))
IDS = torch.tensor([[5, 6, 7], [5, 6, 0], [5, 0, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
PADDED = {"input_ids": IDS, "attention_mask": MASK}
# Sentences of 3, 2 and 1 tokens in one row, and two tokens that fill it up.
FLAT = {"input_ids": torch.tensor([[5, 6, 7, 5, 6, 5, 0, 0]]), "cu_seq_lens_q": torch.tensor([0, 3, 5, 6, 7, 8])}


def point(layer: int = 2, **options: Any) -> LayerPoint:
    return LayerPoint(layer, "blocks.1", "blocks.1", "output", 0, (), **options)


def begun(
    arguments: dict[str, Tensor] = PADDED, *, poolings: tuple[str, ...] = ("mean",), first_id: int = 0, **notes: Any
) -> ProbedForward:
    return ProbedForward.of(MODEL, arguments, BatchNotes(**notes), first_id, poolings)


@pytest.mark.parametrize("arguments", [PADDED, FLAT], ids=["padded", "flattened"])
def test_sentences_that_are_no_repeats_keep_their_ids_and_groups(arguments: dict[str, Tensor]) -> None:
    repeats = torch.tensor([False, True, False])
    ids, groups = torch.tensor([40, 50, 60], dtype=torch.int32), torch.tensor([4, 5, 6])
    assert begun(arguments, first_id=7).sentence_ids.tolist() == [7, 8, 9]
    assert begun(arguments, first_id=7, repeats=repeats).sentence_ids.tolist() == [7, 8]
    none = begun(arguments, repeats=~repeats & False)
    assert none.sentence_ids.tolist() == [0, 1, 2]
    assert (none.kept is None) == (arguments is PADDED)
    found = begun(arguments, repeats=repeats, sentence_ids=ids, groups=groups)
    assert (found.sentence_ids.tolist(), found.sentence_ids.dtype) == ([40, 60], torch.int64)
    assert found.groups is not None
    assert found.groups.tolist() == [4, 6]
    assert found.kept is not None
    assert found.kept.tolist() == [True, False, True, *[False] * (2 * (arguments is FLAT))]
    whole = begun(arguments, sentence_ids=ids, groups=groups)
    assert whole.sentence_ids.tolist() == [40, 50, 60]
    assert whole.groups is groups
    assert (whole.kept is None) == (arguments is PADDED)


def test_one_token_that_fills_up_a_row_is_no_sentence() -> None:
    forward = begun({"input_ids": FLAT["input_ids"][:, :7], "cu_seq_lens_q": FLAT["cu_seq_lens_q"][:5]})
    assert forward.kept is not None
    assert forward.kept.tolist() == [True, True, True, False]


def test_the_rows_of_ids_and_of_embeddings_are_sentences() -> None:
    for arguments in ({"input_ids": IDS[:2]}, {"inputs_embeds": torch.ones(2, 3, 4)}):
        forward = begun(arguments)
        assert forward.sentence_ids.tolist() == [0, 1]
        assert forward.mask.tolist() == [[True] * 3] * 2


def test_what_continues_sentences_or_has_several_in_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^mems: got a cache with earlier tokens"):
        begun({**PADDED, "mems": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"^position_ids: got positions that start again"):
        begun({**PADDED, "position_ids": torch.tensor([[0, 1, 0], [0, 1, 2], [0, 1, 2]])})


@pytest.mark.parametrize("arguments", [PADDED, FLAT], ids=["padded", "flattened"])
@pytest.mark.parametrize("n", [2, 4])
def test_notes_are_of_each_sentence(arguments: dict[str, Tensor], n: int) -> None:
    notes = {"sentence_ids": torch.arange(n), "repeats": torch.zeros(n, dtype=torch.bool), "groups": torch.arange(n)}
    for name, value in notes.items():
        with pytest.raises(ValueError, match=name) as refused:
            begun(arguments, **{name: value})
        assert str(refused.value) == f"{name}: got {n}; it must be 3, one for each sentence of the batch"


def test_special_tokens_are_of_the_shape_of_the_tokens() -> None:
    special = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="special") as refused:
        begun(special=special)
    assert str(refused.value) == "special: got shape (3, 4); it must be (3, 3) as the tokens"
    assert begun(special=special[:, :3]).special is not None
    with pytest.raises(ValueError, match=r"special: got None; .* for the pooling mean_without_special"):
        begun(poolings=("mean", "mean_without_special"))


def test_rows_of_padded_turned_and_packed_layers() -> None:
    hidden = torch.arange(18.0).reshape(3, 3, 2)  # (B, T, D)
    packed = hidden[MASK.bool()]  # (6, D)
    forward = begun()
    assert forward.rows_of(point(), hidden, 2) is hidden
    assert torch.equal(forward.rows_of(point(time_major=True), hidden.transpose(0, 1), 2), hidden)
    assert torch.equal(forward.rows_of(point(padded=True), torch.cat([hidden, 9 * hidden], 1), 2), hidden)
    assert forward.rows_of(point(), packed, 2) is packed
    assert forward.rows_of(point(time_major=True, padded=True), packed, 2) is packed
    some = begun(repeats=torch.tensor([False, True, False]))
    assert torch.equal(some.rows_of(point(), hidden, 2), hidden[[0, 2]])
    assert torch.equal(some.rows_of(point(), packed, 2), packed[[0, 1, 2, 5]])


def test_rows_of_a_flattened_batch_leave_out_what_fills_it_up() -> None:
    row = torch.arange(16.0).reshape(1, 8, 2)  # (1, N, D)
    forward = begun(FLAT, repeats=torch.tensor([False, True, False]))
    for hidden in (row, row[0]):
        assert torch.equal(forward.rows_of(point(), hidden, 2), row[0, [0, 1, 2, 5]])
    batch = forward.batch_of(row[0, [0, 1, 2, 5]])
    assert batch.cu_seqlens is not None
    assert (batch.mask, batch.cu_seqlens.tolist()) == (None, [0, 3, 4])


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((3, 4, 2), "(3, 3, 2)"),
        ((2, 3, 2), "(3, 3, 2)"),
        ((5, 2), "(6, D) for the tokens under the mask"),
        ((7, 2), "(6, D) for the tokens under the mask"),
    ],
)
def test_layers_of_another_shape_are_refused(shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match="layer 2") as refused:
        begun().rows_of(point(), torch.ones(shape), 2)
    assert str(refused.value) == f"layer 2 (blocks.1): got hidden states of shape {shape}; it must be {wanted}"


def test_a_batch_is_made_once_for_padded_layers_and_once_for_packed_ones() -> None:
    hidden = torch.ones(3, 3, 2)
    special = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.bool)
    forward = begun(special=special, repeats=torch.tensor([False, True, False]), sentence_ids=torch.tensor([3, 4, 5]))
    padded = forward.batch_of(forward.rows_of(point(), hidden, 2))
    packed = forward.batch_of(forward.rows_of(point(), hidden[MASK.bool()], 2))
    assert padded.mask is not None
    assert padded.special is not None
    assert packed.cu_seqlens is not None
    assert packed.special is not None
    assert padded.mask.tolist() == MASK[[0, 2]].bool().tolist()
    assert padded.special.tolist() == special[[0, 2]].tolist()
    assert (padded.cu_seqlens, packed.mask) == (None, None)
    assert packed.cu_seqlens.tolist() == [0, 3, 4]
    assert packed.special.tolist() == [True, False, False, True]
    assert padded.sentence_ids.tolist() == packed.sentence_ids.tolist() == [3, 5]
    assert forward.batch_of(torch.ones(2, 3, 2)) is padded
    assert forward.batch_of(torch.ones(4, 2)) is packed


def test_layers_wait_together_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.ones(3, 3, 2)  # 72 bytes
    forward = begun()
    assert forward.holds_like(hidden)
    assert not forward.holds_another(point(1), hidden)  # none waits yet
    monkeypatch.setitem(probed_forward._HELD_BYTES, "cpu", 145)
    forward.hold(1, hidden, as_it_was=True)
    assert not forward.holds_enough()
    others = {
        "form": torch.ones(3, 3, 3),
        "strides": torch.ones(3, 2, 3).transpose(1, 2),
        "dtype": hidden.double(),
        "kind": torch.nn.Parameter(hidden, requires_grad=False),
    }
    for other in others.values():
        assert not forward.holds_like(other)
        assert not forward.holds_another(point(2), other)
    assert not forward.holds_another(point(2), hidden.clone().requires_grad_())
    assert not forward.holds_another(point(2, time_major=True), hidden)
    assert forward.seen == {1}
    assert forward.holds_like(hidden.clone())
    assert forward.holds_another(point(2), hidden.clone())
    assert not forward.holds_enough()  # 144 of 145 bytes
    forward.hold(3, hidden, as_it_was=False)
    assert forward.holds_enough()
    assert not forward.holds_another(point(4), hidden)  # the last one was changed before it was held
    assert [layer for layer, _ in forward.held] == [1, 2, 3]
    assert forward.seen == {1, 2, 3}
    forward.hold(4, hidden, as_it_was=True)
    forward.held.clear()
    assert not forward.holds_another(point(5), hidden)  # none waits any more


@pytest.mark.parametrize(("limit", "n"), [(0, 0), (1, 1), (72, 1), (73, 2), (144, 2)])
def test_as_many_layers_wait_as_the_memory_is_for(limit: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probed_forward._HELD_BYTES, "cpu", limit)
    forward, hidden = begun(), torch.ones(3, 3, 2)
    held = 0
    while held < 5:
        forward.hold(held, hidden, as_it_was=True)
        held += 1
        if forward.holds_enough():
            break
    assert held == max(1, n)
    forward.hold(9, hidden[:0], as_it_was=True)  # of no bytes
    assert forward.holds_enough() == (held + 1 >= limit)


def test_a_mask_of_samples_without_a_gap_is_of_the_first_frames() -> None:
    model: Any = SimpleNamespace(
        _get_feat_extract_output_lengths=lambda lengths: lengths // 2, _get_feature_vector_attention_mask=None
    )
    waves, mask = torch.ones(2, 6), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    hidden = torch.ones(2, 3, 4)

    def of(**arguments: Tensor) -> ProbedForward:
        forward = ProbedForward.of(model, {"input_values": waves, **arguments}, BatchNotes(), 0, ("mean",))
        assert forward.mask.shape == (2, 0)
        forward.begin(point(), hidden)
        return forward

    assert of().mask.tolist() == [[True] * 3] * 2
    right = of(attention_mask=mask)
    right.refuse_wrong_mask()
    assert right.mask.tolist() == [[True] * 3, [True, True, False]]
    turned = ProbedForward.of(model, {"input_values": waves}, BatchNotes(), 0, ("mean",))
    turned.begin(point(time_major=True), hidden.transpose(0, 1))
    assert turned.mask.shape == (2, 3)
    left = of(attention_mask=mask.flip(1))
    with pytest.raises(ValueError, match="padding") as refused:
        left.refuse_wrong_mask()
    assert str(refused.value) == (
        "attention_mask: got padding before samples; it must follow them, as the model takes it to do"
    )
    left.refuse_wrong_mask()  # is said once
    wrong = of(attention_mask=2 * mask)
    with pytest.raises(ValueError, match=r"^attention_mask: got values other than 0 and 1"):
        wrong.refuse_wrong_mask()
    images = {"pixel_values": torch.ones(2, 3, 1, 1), "pixel_attention_mask": torch.full((2, 3), 2)}
    patches = ProbedForward.of(model, images, BatchNotes(), 0, ("mean",))
    patches.begin(point(), hidden)
    with pytest.raises(ValueError, match=r"^pixel_attention_mask: got values other than 0 and 1"):
        patches.refuse_wrong_mask()
    # Of the frames themselves any may count.
    frames = torch.tensor([[0, 1, 1], [1, 0, 1]])
    of(attention_mask=frames).refuse_wrong_mask()
    with pytest.raises(ValueError, match="layer 2") as refused:
        ProbedForward.of(model, {"input_values": waves}, BatchNotes(), 0, ()).begin(point(), hidden[0])
    assert str(refused.value) == (
        "layer 2 (blocks.1): got hidden states of shape (3, 4); it must be (B, T, D) for input_values"
    )


def test_special_tokens_of_images_are_found_where_a_pooling_needs_them() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(patch_size=4))
    arguments = {"pixel_values": torch.ones(2, 3, 4, 8)}
    hidden, noted = torch.ones(2, 3, 4), torch.tensor([[False, False, True]] * 2)

    def special(poolings: tuple[str, ...], **notes: Any) -> list[list[bool]] | None:
        forward = ProbedForward.of(model, arguments, BatchNotes(**notes), 0, poolings)
        forward.begin(point(), hidden)
        return None if forward.special is None else forward.special.tolist()

    assert special(("mean", "cls")) is None
    assert special(("mean", "mean_without_special")) == [[True, False, False]] * 2
    assert special(("mean_without_special",), special=noted) == noted.tolist()
    with pytest.raises(ValueError, match=r"^special: got shape \(2, 2\); it must be \(2, 3\) as the tokens$"):
        special(("mean",), special=noted[:, :2])
    forward = ProbedForward.of(model, arguments, BatchNotes(), 0, ("mean_without_special",))
    assert isinstance(forward.positions, Positions)
    with pytest.raises(ValueError, match=r"^special: got None"):
        forward.begin(point(), torch.ones(2, 1, 4))  # fewer positions than patches


@pytest.mark.parametrize(
    ("n", "listed"),
    [
        (1, "100"),
        (8, "100, 101, 102, 103, 104, 105, 106, 107"),
        (9, "100, 101, 102, 103, 104, 105, 106, 107 and 1 more"),
        (12, "100, 101, 102, 103, 104, 105, 106, 107 and 4 more"),
    ],
)
def test_a_strict_probe_names_eight_sentences(n: int, listed: str) -> None:
    forward = ProbedForward(torch.arange(100, 115), torch.ones(15, 1, dtype=torch.bool))
    forward.status = {3: torch.zeros(15, dtype=torch.uint8)}
    forward.refuse_faults({3: "blocks.2"})
    forward.status[3][:n] = 2
    with pytest.raises(ValueError, match="strict") as refused:
        forward.refuse_faults({3: "blocks.2"})
    assert str(refused.value) == f"strict: layer 3 (blocks.2): a token that is not finite in sentences {listed}"


def test_a_strict_probe_names_all_that_is_wrong_by_layer() -> None:
    forward = ProbedForward(torch.tensor([7, 8, 9]), torch.ones(3, 1, dtype=torch.bool))
    forward.status = {4: torch.tensor([4, 0, 2]), 1: torch.tensor([0, 3, 1])}
    with pytest.raises(ValueError, match="strict") as refused:
        forward.refuse_faults({1: "blocks.0", 4: "norm"})
    assert str(refused.value) == (
        "strict: layer 1 (blocks.0): a zero token in sentences 8, 9; "
        "layer 1 (blocks.0): a token that is not finite in sentences 8; "
        "layer 4 (norm): a token that is not finite in sentences 9; "
        "layer 4 (norm): no token under the mask in sentences 7"
    )
