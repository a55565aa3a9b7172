"""The laws of the state: merging is associative, has an identity, round-trips, changes no input, and any split of the
rows gives the same answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cone_kernels import ConeState, Moments, metrics
from cone_kernels.axes import axes
from cone_kernels.names import POOLINGS
from cone_kernels.ops.pool_moments import pool_moments_
from cone_kernels.ops.second_moment import second_moment_
from cone_kernels.state.file import StateFileError
from cone_kernels.sums import symmetric
from tests.support.moment_cases import assert_sums_close, normal

DIM = 6
quick = settings(max_examples=25, deadline=None)
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)
pooling_sets = st.lists(st.sampled_from(list(POOLINGS)), unique=True)


def filled(n: int, seed: int, first_id: int = 0) -> Moments:
    moments = Moments.empty("sentence", [0, 1], DIM, second_moment=True, unit_second_moment=True)
    moments.update(normal(2, n, DIM, seed=seed), sentence_ids=torch.arange(n) + first_id)
    return moments


def batch(sentences: int, seed: int, layers: int = 2) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(sentences, 5, generator=generator) < 0.7
    return [normal(sentences, 5, DIM, seed=seed + layer) for layer in range(layers)], mask


def state_of(batches: list[tuple[list[Tensor], Tensor]], **options: Any) -> ConeState:
    state = ConeState.empty(range(2), DIM, **options)
    for hidden, mask in batches:
        state.update(hidden, mask, special=special_of(mask))
    return state


def special_of(mask: Tensor) -> Tensor:
    return mask.bool() & (mask.cumsum(1) == 1)


def assert_states_close(one: ConeState, other: ConeState, relative: float = 4e-7) -> None:
    assert_sums_close(one.sentence.sums, other.sentence.sums, relative)
    assert_sums_close(one.token.sums, other.token.sums, relative)
    assert list(one.poolings) == list(other.poolings)
    for name, moments in one.poolings.items():
        assert_sums_close(moments.sums, other.poolings[name].sums, relative)
    assert torch.equal(one.first_left_out, other.first_left_out)


@quick
@given(sizes, seeds)
def test_any_split_of_the_rows_gives_the_same_sums(parts: list[int], seed: int) -> None:
    n = sum(parts)
    x = normal(2, n, DIM, seed=seed)
    whole = Moments.empty("sentence", [0, 1], DIM, second_moment=True, unit_second_moment=True)
    whole.update(x)
    updated = Moments.empty("sentence", [0, 1], DIM, second_moment=True, unit_second_moment=True)
    merged = updated
    for begin, size in zip(itertools.accumulate([0, *parts]), parts, strict=False):
        rows, ids = x[:, begin : begin + size], torch.arange(begin, begin + size)
        updated.update(rows)  # ids count on by themselves
        part = Moments.empty("sentence", [0, 1], DIM, second_moment=True, unit_second_moment=True)
        part.update(rows, sentence_ids=ids)
        merged = part if begin == 0 and merged is updated else merged.merge(part)
    assert_sums_close(updated.sums, whole.sums, 4e-7)
    assert_sums_close(merged.sums, whole.sums, 4e-7)


@quick
@given(st.tuples(*[st.integers(0, 30)] * 3), seeds)
def test_merge_is_associative_and_commutative(counts: tuple[int, int, int], seed: int) -> None:
    a, b, c = (filled(n, seed + i) for i, n in enumerate(counts))
    one, other = a.merge(b).merge(c).sums, a.merge(b.merge(c)).sums
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-13, atol=1e-13)
    assert a.merge(b).fingerprint() == b.merge(a).fingerprint()


@quick
@given(st.integers(0, 30), seeds)
def test_the_empty_state_is_the_identity(n: int, seed: int) -> None:
    moments = filled(n, seed)
    empty = filled(0, seed)
    assert moments.merge(empty).fingerprint() == moments.fingerprint()
    assert empty.merge(moments).fingerprint() == moments.fingerprint()


@quick
@given(st.integers(0, 30), st.integers(0, 30), seeds)
def test_merging_and_reading_change_no_input(n: int, m: int, seed: int) -> None:
    a, b = filled(n, seed), filled(m, seed + 1)
    before = a.fingerprint(), b.fingerprint()
    merged = a.merge(b)
    merged.update(normal(2, 3, DIM))
    _ = a.second_moment, a.sums["count"].shape
    assert (a.fingerprint(), b.fingerprint()) == before


@pytest.mark.parametrize(
    ("use", "products"),
    [
        (lambda a, b: a.merge(b), 2 * 2),
        (lambda a, b: a.settled(), 2),
        (lambda a, b: a.fingerprint(), 2),
        (lambda a, b: a.second_moment, 1),
        (lambda a, b: axes(a), 1),
        (lambda a, b: metrics.rank_me(a), 1),
        (lambda a, b: metrics.anisotropy_stderr(a), 0),
    ],
)
def test_waiting_rows_are_multiplied_once_for_each_field_all_layers_together(
    use: Callable[[Moments, Moments], object], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = filled(9, 0), filled(5, 1)
    calls = []

    def counted(*args: Any, **options: Any) -> None:
        calls.append(args)
        second_moment_(*args, **options)

    monkeypatch.setattr("cone_kernels.state.moments.second_moment_", counted)
    use(a, b)
    assert len(calls) == products


def test_reading_in_between_does_not_change_the_bits_of_what_follows() -> None:
    x = normal(2, 1500, DIM)
    quiet, read = filled(0, 0), filled(0, 0)
    for begin in range(0, 1500, 100):
        quiet.update(x[:, begin : begin + 100])
        read.update(x[:, begin : begin + 100])
        assert bool(read.second_moment.isfinite().all())
    assert quiet.fingerprint() == read.fingerprint()


def test_second_moments_are_those_of_the_rows_used() -> None:
    x = normal(2, 1300, DIM, dtype=torch.float64, shift=3.0)
    x[0, 7] = 0
    x[1, 9, 2] = torch.nan
    moments = Moments.empty("sentence", [0, 1], DIM, second_moment=True, unit_second_moment=True)
    for part in x.split(173, dim=1):
        moments.update(part)
    for layer in range(2):
        rows = x[layer][x[layer].isfinite().all(-1) & (x[layer] != 0).any(-1)]
        u = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        for got, wanted in ((moments.second_moment, rows.T @ rows), (moments.unit_second_moment, u.T @ u)):
            torch.testing.assert_close(symmetric(got[layer]), wanted, rtol=1e-12, atol=1e-12)
        squares = rows.square().sum(-1, keepdim=True)
        torch.testing.assert_close(moments.cubic_sum[layer], (squares * rows).sum(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.quartic_sum[layer], squares.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics.covariance(moments)[0], torch.cov(x[0, [*range(7), *range(8, 1300)]].T))


def test_both_levels_from_one_update() -> None:
    hidden, mask = batch(50, 1)
    state = state_of([(hidden, mask)])
    for layer in range(2):
        tokens = hidden[layer][mask].double()
        u = tokens / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
        torch.testing.assert_close(state.token.unit_sum[layer].sum(0), u.sum(0), rtol=1e-6, atol=1e-6)
        kept = mask.any(1)
        pooled = torch.stack([hidden[layer][i, mask[i]].double().mean(0) for i in kept.nonzero().flatten()])
        v = pooled / torch.linalg.vector_norm(pooled, dim=-1, keepdim=True)
        torch.testing.assert_close(state.sentence.unit_sum[layer].sum(0), v.sum(0), rtol=1e-6, atol=1e-6)
        assert int(state.sentence.count[layer].sum()) == int(kept.sum())
        assert int(state.sentence.n_empty[layer].sum()) == int((~kept).sum())


def test_layer_by_layer_is_the_same_as_all_at_once() -> None:
    hidden, mask = batch(30, 2, layers=4)
    together = ConeState.empty(range(4), DIM)
    apart = ConeState.empty(range(4), DIM)
    scattered = ConeState.empty(range(4), DIM)
    together.update(hidden, mask)
    for layer in (2, 0, 3, 1):
        apart.update([hidden[layer]], mask, layers=[layer])
    scattered.update([hidden[3], hidden[0]], mask, layers=[3, 0])
    scattered.update([hidden[2], hidden[1]], mask, layers=[2, 1])
    assert together.fingerprint() == apart.fingerprint() == scattered.fingerprint()


def test_packed_is_the_same_as_padded() -> None:
    hidden, mask = batch(30, 2)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    packed = ConeState.empty(range(2), DIM)
    packed.update([layer[mask] for layer in hidden], cu_seqlens=starts)
    assert packed.fingerprint() == state_of([(hidden, mask)]).fingerprint()


@quick
@given(st.lists(st.integers(0, 20), min_size=2, max_size=3), seeds, pooling_sets)
def test_states_merge_like_their_batches(counts: list[int], seed: int, poolings: list[str]) -> None:
    batches = [batch(n, seed + i) for i, n in enumerate(counts)]
    whole = state_of(batches, poolings=poolings)
    first_ids = itertools.accumulate([0, *counts])
    parts = []
    for (hidden, mask), first in zip(batches, first_ids, strict=False):
        part = ConeState.empty(range(2), DIM, poolings=poolings)
        part.update(hidden, mask, sentence_ids=torch.arange(len(mask)) + first, special=special_of(mask))
        parts.append(part)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_states_close(merged, whole)


@quick
@given(st.tuples(*[st.integers(0, 20)] * 3), seeds, pooling_sets)
def test_merging_states_is_associative_and_commutative_and_changes_none(
    counts: tuple[int, int, int], seed: int, poolings: list[str]
) -> None:
    a, b, c = (state_of([batch(n, seed + i)], poolings=poolings) for i, n in enumerate(counts))
    before = [state.fingerprint() for state in (a, b, c)]
    assert_states_close(a.merge(b).merge(c), a.merge(b.merge(c)), 1e-13)
    assert a.merge(b).fingerprint() == b.merge(a).fingerprint()
    nothing = ConeState.empty(range(2), DIM, poolings=poolings)
    assert a.merge(nothing).fingerprint() == nothing.merge(a).fingerprint() == a.fingerprint()
    assert [state.fingerprint() for state in (a, b, c)] == before


def test_the_first_sentences_left_out_are_kept() -> None:
    hidden, mask = batch(40, 5)
    mask[:] = True
    for sentence in (3, 9, 17):
        hidden[1][sentence, 2] = torch.nan
    mask[30] = False
    state = state_of([(hidden, mask)])
    ids = [[i for i in row if i < 2**62] for row in state.first_left_out.tolist()]
    assert ids == [[30], [3, 9, 17, 30]]
    many = ConeState.empty(range(2), DIM)
    many.update(hidden, torch.zeros(40, 5), sentence_ids=torch.arange(100, 140).flip(0))
    assert many.first_left_out[0].tolist() == list(range(100, 108))
    assert state.merge(many).first_left_out[1].tolist() == [3, 9, 17, 30, 100, 101, 102, 103]


def test_notes_of_what_was_left_out_are_worked_off_every_64_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    state, mask = ConeState.empty([0], DIM), torch.tensor([[1, 1], [0, 0]])
    for turn in range(1, 67):
        state.update([normal(2, 2, DIM)], mask)
        assert len(state._left_out) == turn % 64
    assert state.first_left_out.tolist() == [list(range(1, 16, 2))]
    assert state._left_out == []
    # What a CUDA graph leaves is written over when it is replayed.
    monkeypatch.setattr("cone_kernels.state.cone_state.is_captured", lambda tensor: True)
    state.update([normal(2, 2, DIM)], mask)
    assert state._left_out == []


def test_neighbouring_layers_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(layers: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
        calls.append(len(layers))
        return pool_moments_(layers, *rest)

    monkeypatch.setattr("cone_kernels.state.cone_state.pool_moments_", counted)
    hidden, mask = batch(3, 1, layers=5)
    state = ConeState.empty(range(5), DIM)
    for layers, wanted in (
        ([0, 1, 2, 3, 4], [5]),
        ([2, 3, 4], [3]),
        ([3], [1]),
        ([0, 1, 4], [1, 1, 1]),
        ([2, 1], [1, 1]),
    ):
        calls.clear()
        state.update([hidden[layer] for layer in layers], mask, layers=layers)
        assert calls == wanted


def test_status_names_what_was_wrong() -> None:
    hidden, mask = batch(4, 6)
    mask[:] = True
    hidden[0][1, 0] = 0
    hidden[1][2, 0, 0] = torch.inf
    mask[3] = False
    state = ConeState.empty(range(2), DIM)
    assert state.update(hidden, mask).tolist() == [[0, 1, 0, 4], [0, 0, 2, 4]]


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    state = state_of([batch(20, 1), batch(7, 2)], second_moment=True, info={"model": {"name": "tiny"}, "pad": None})
    sha256 = state.save(tmp_path / "a.safetensors")
    loaded = ConeState.load(tmp_path / "a.safetensors")
    assert sha256 == state.fingerprint() == loaded.fingerprint()
    assert loaded.info == state.info
    assert loaded.layers == state.layers
    assert all(torch.equal(loaded.token.sums[name], value) for name, value in state.token.sums.items())
    moments = filled(9, 3)
    moments.save(tmp_path / "b.safetensors")
    assert Moments.load(tmp_path / "b.safetensors").fingerprint() == moments.fingerprint()
    assert Moments.load(tmp_path / "b.safetensors").merge(moments).count.sum() == 36
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 20), seeds, pooling_sets)
def test_poolings_round_trip_through_a_file(
    tmp_path_factory: pytest.TempPathFactory, n: int, seed: int, poolings: list[str]
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    state = state_of([batch(n, seed)], poolings=poolings)
    sha256 = state.save(path)
    loaded = ConeState.load(path)
    assert sha256 == state.fingerprint() == loaded.fingerprint()
    assert list(loaded.poolings) == list(state.poolings) == [name for name in list(POOLINGS)[1:] if name in poolings]
    assert_states_close(loaded, state, 0)
    assert loaded.merge(state).fingerprint() == state.merge(state).fingerprint()


def test_a_state_without_poolings_has_the_file_that_it_had_before_there_were_any(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state_of([batch(20, 1)], poolings=["mean"]).save(path)
    with safe_open(path, framework="pt") as file:
        assert sorted(json.loads(file.metadata()["info"])) == ["sentence", "state", "token"]
        assert {name.split(".")[0] for name in file.keys()} == {"sentence", "token", "first_left_out"}  # noqa: SIM118
        assert file.metadata()["schema"] == "cone_kernels/state/1"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    first = state_of([batch(20, 1)])
    first.save(path)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{step}", disk_full)
            with pytest.raises(OSError, match="No space left"):
                state_of([batch(5, 2)]).save(path)
        assert ConeState.load(path).fingerprint() == first.fingerprint()
        assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state_of([batch(20, 1)]).save(path)
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 97)):
        damaged = bytearray(content)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(StateFileError):
            ConeState.load(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StateFileError, match="not a readable safetensors file"):
        ConeState.load(path)


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """Changes a file and signs it again, as someone hostile would."""
    from cone_kernels.state import file as state_file

    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["info"])
    change(tensors, info)
    metadata = {"schema": state_file.SCHEMA, "info": json.dumps(info), "sha256": state_file.fingerprint(tensors, info)}
    save_file(tensors, path, metadata)


def of_the_level_of(tensors: dict[str, Tensor], info: dict[str, Any], part: str, other: str) -> None:
    """Puts another part, of the other level, in the place of a part."""
    for name in [name for name in tensors if name.startswith(f"{part}.")]:
        del tensors[name]
    tensors |= {
        name.replace(other, part, 1): tensor + 0 for name, tensor in tensors.items() if name.startswith(f"{other}.")
    }
    info[part] = info[other]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, i: t.update({"token.count": -t["token.count"]}), "token.count|count has a negative count"),
        (lambda t, i: t["sentence.n_zero"].fill_(2**48 + 1), "n_zero has a count above"),
        (lambda t, i: t.update({"token.sum": t["token.sum"] * torch.nan}), "sum has values that are not finite"),
        (lambda t, i: t.update({"token.sum": t["token.sum"].float()}), "sum has shape"),
        (lambda t, i: t.update({"token.sum": t["token.sum"][:, :2].contiguous()}), "sum has shape"),
        (lambda t, i: t.pop("sentence.norm_sum"), "has tensors"),
        (lambda t, i: t.pop("first_left_out"), "first_left_out has shape"),
        (lambda t, i: i["token"].update(level="word"), "level is 'word'"),
        (lambda t, i: i["token"].update(dim=-1), "dim is -1"),
        (lambda t, i: i["token"].update(dim="6"), "dim is '6'"),
        (lambda t, i: i["token"].update(layers=[0, 0]), "layers are"),
        (lambda t, i: i["token"].update(fields=["count"]), "fields are"),
        (
            lambda t, i: [i["token"]["fields"].remove("n_cancelled"), t.pop("token.n_cancelled")],
            "n_cancelled must be there too. A state that was saved before the sums had them must be measured again",
        ),
        (lambda t, i: t["token.n_cancelled"].add_(t["token.n_sentences"] + 1), "sentence_unit_sum of token is longer"),
        (
            lambda t, i: (i["token"]["fields"].append("more"), t.update({"token.more": t["token.count"] + 0})),
            "fields are .* 'more'",
        ),
        (lambda t, i: i["token"].pop("dim"), "header: got"),
        (lambda t, i: i.pop("token"), "got a header of"),
        (lambda t, i: of_the_level_of(t, i, "sentence", "token"), "wrong levels .sentence: token, token: token"),
        (lambda t, i: of_the_level_of(t, i, "token", "sentence"), "wrong levels .sentence: sentence, token: sentence"),
        (lambda t, i: i.update(more={}), "got a header of"),
        *(
            (lambda t, i, pooling=pooling: i.update(pooling=pooling), "pooling is .*; it must be one of mean, ")
            for pooling in ("mean", "median", None, 3, ["cls"], {"cls": 1})
        ),
        (lambda t, i: i.update(output=None), "header: got None; it must be an object with"),
        (lambda t, i: i.update(state=[]), r"state is \[\]; it must be an object"),
        (
            lambda t, i: t.update({"word.count": t["token.count"] + 0}),
            r"tensors \['word.count'\] that belong to nothing",
        ),
        (lambda t, i: i["token"].update(layers=[0, 5]), "token and sentence differ in layers or width"),
        (lambda t, i: i.update(sentence=i["token"]), "has tensors"),
        (lambda t, i: i.update(poolings={}), "poolings are"),
        (lambda t, i: i.update(poolings=["cls"]), r"poolings are \['cls'\]; they must be of"),
        (lambda t, i: i["poolings"].update(mean=i["sentence"]), r"poolings are \['cls', 'max', 'mean'\]"),
        (lambda t, i: i["poolings"].update(median=i["sentence"]), r"poolings are \['cls', 'max', 'median'\]"),
        (lambda t, i: i["poolings"].update(cls=i["token"]), "the pooling cls is of level 'token'"),
        (lambda t, i: i["poolings"].update(cls=3), "the pooling cls is of level None"),
        (lambda t, i: i["poolings"]["cls"].update(layers=[1, 0]), "poolings.cls and sentence differ in layers"),
        (lambda t, i: i["poolings"].pop("cls"), r"has tensors \['poolings.cls.count', .* that belong to nothing"),
        (lambda t, i: i["poolings"].update(last=i["sentence"]), r"has tensors \[\]; its header says"),
        (lambda t, i: t.pop("poolings.max.sum"), "has tensors"),
        (lambda t, i: t.update({"poolings.max.count": -t["poolings.max.count"]}), "count has a negative count"),
    ],
)
def test_a_hostile_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None], words: str
) -> None:
    path = tmp_path / "state.safetensors"
    state_of([batch(20, 1)], poolings=["cls", "max"]).save(path)
    rewritten(path, lambda tensors, info: None)
    ConeState.load(path)
    rewritten(path, change)
    with pytest.raises(StateFileError, match=words):
        ConeState.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        ConeState.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(StateFileError, match="got schema None"):
        ConeState.load(path)
    filled(3, 1).save(path)
    with pytest.raises(StateFileError, match=r"got a header of \['moments'\]"):
        ConeState.load(path)


def test_unlike_states_do_not_merge() -> None:
    moments = filled(3, 0)
    with pytest.raises(ValueError, match=r"differ in dim \(6 and 7\)"):
        moments.merge(Moments.empty("sentence", [0, 1], 7, second_moment=True, unit_second_moment=True))
    with pytest.raises(ValueError, match=r"differ in fields .*, layers \(\[0, 1\] and \[0, 2\]\), level"):
        moments.merge(Moments.empty("token", [0, 2], DIM))
    one, other = (ConeState.empty([0], DIM, info={"model": name, "seed": 1}) for name in "ab")
    with pytest.raises(ValueError, match=r"differ in model \('a' and 'b'\)$"):
        one.merge(other)
    one, other = (ConeState.empty([0], DIM, info=info) for info in ({"seed": 1}, {}))
    with pytest.raises(ValueError, match=r"differ in seed \(1 and None\)$"):
        one.merge(other)
    one, other = (ConeState.empty([0], DIM, poolings=poolings) for poolings in (["cls"], ["cls", "max"]))
    with pytest.raises(ValueError, match=r"differ in poolings \(\['cls'\] and \['cls', 'max'\]\)$"):
        one.merge(other)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Moments.empty("word", [0], 3), "level: got 'word'"),
        (lambda: Moments.empty("token", [], 3), "layers: got"),
        (lambda: Moments.empty("token", [1, 1], 3), "layers: got"),
        (lambda: Moments.empty("token", [1], 0), "dim: got 0"),
        (lambda: filled(1, 0).update(torch.zeros(2, 5, 7)), r"x: got shape \(2, 5, 7\)"),
        (lambda: filled(1, 0).update(torch.zeros(5, DIM)), r"x: got shape \(5, 6\)"),
        (lambda: filled(1, 0).select(7), "layer: got 7"),
        (lambda: state_of([([normal(2, 5, DIM)], torch.ones(2, 5))]), "got 1 layers; it must be 2"),
        (lambda: state_of([([normal(2, 5, 9)] * 2, torch.ones(2, 5))]), "got width 9"),
        (
            lambda: ConeState.empty([0], DIM).update([normal(2, 5, DIM)], torch.ones(2, 5), layers=[4]),
            r"layers: got \[4\]",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("n", [1, 3])
def test_groups_that_are_given_are_from_0_to_63(n: int) -> None:
    for group, fits in ((0, True), (63, True), (64, False), (-1, False)):
        groups = torch.zeros(n, dtype=torch.int64)
        groups[-1] = group
        state = ConeState.empty([0], 4)
        if fits:
            state.add_output(normal(n, 4), torch.arange(n), groups=groups)
            assert state.output is not None
            assert int(state.output.count[0, group]) == (n if group == 0 else 1)
        else:
            with pytest.raises(ValueError, match=f"groups: got {group}"):
                state.add_output(normal(n, 4), torch.arange(n), groups=groups)


def test_no_vectors_may_have_no_groups() -> None:
    state, nothing = ConeState.empty([0], 4), torch.arange(0)
    state.add_output(normal(0, 4), nothing, groups=nothing)
    assert state.output is not None
    assert state.output.rows_seen(0) == 0


def test_no_such_field() -> None:
    with pytest.raises(AttributeError, match="has no field 'second_moment'"):
        _ = Moments.empty("token", [0], 3).second_moment


def test_select_is_one_layer() -> None:
    moments = filled(30, 1)
    one = moments.select(1)
    assert one.layers == (1,)
    assert torch.equal(metrics.anisotropy(one), metrics.anisotropy(moments)[1:])
    one.update(normal(1, 5, DIM))
    assert int(moments.count[1].sum()) == 30
    # Layers have numbers of their own, which are no places.
    late = Moments.empty("sentence", [2, 5], DIM, second_moment=True, unit_second_moment=True)
    late.update(normal(2, 30, DIM, seed=1), sentence_ids=torch.arange(30))
    for number, place in ((2, 0), (5, 1)):
        found, wanted = late.select(number), moments.select(place)
        assert found.layers == (number,)
        assert all(torch.equal(found.sums[name], wanted.sums[name]) for name in wanted.fields)


@pytest.mark.parametrize("second_moment", [False, True])
def test_a_cleared_state_is_an_empty_one_in_the_same_memory(second_moment: bool) -> None:
    options: dict[str, Any] = {"second_moment": second_moment, "poolings": ["cls", "max"]}
    wanted = state_of([batch(7, seed=3)], **options)
    state = state_of([batch(600, seed=1), batch(4, seed=2)], **options)
    state.add_output(normal(5, DIM, seed=4), torch.arange(5))
    place = state.sentence.unit_sum.data_ptr()
    # Some sentences were left out, and of one it is not yet noted.
    assert bool((state.first_left_out != 2**63 - 1).any())
    state.update(batch(1, seed=5)[0], torch.zeros(1, 5), special=torch.zeros(1, 5))
    state.clear_()
    assert state.sentence.unit_sum.data_ptr() == place
    assert all(not bool(value.any()) for moments in state.all_moments.values() for value in moments.sums.values())
    assert torch.equal(state.first_left_out, ConeState.empty(range(2), DIM).first_left_out)
    hidden, mask = batch(7, seed=3)
    state.update(hidden, mask, special=special_of(mask))
    assert state.sentence.fingerprint() == wanted.sentence.fingerprint()
    assert state.token.fingerprint() == wanted.token.fingerprint()
    assert torch.equal(state.first_left_out, wanted.first_left_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, info: tensors.update({"sentence.count": tensors["sentence.count"] + (2**63 - 99)}), "a count"),
        (lambda tensors, info: tensors["sentence.unit_sum"].mul_(1e3), "unit_sum of sentence is longer than its count"),
        (lambda tensors, info: info["state"].update(layer_names=["a"]), "layer_names are .*; they must be a text for"),
        (lambda tensors, info: info["state"].update(layer_names="ab"), "layer_names are 'ab'; they must be a text for"),
        (lambda tensors, info: info["state"].update(layer_names=[1, 2]), "layer_names are"),
        (lambda tensors, info: info.update(sentence=None), "header: got None; it must be an object with"),
        (lambda tensors, info: info.update(sentence=list(info["sentence"])), "header: got .*; it must be an object"),
        (lambda tensors, info: info["sentence"].pop("dim"), "header: got .*; it must be an object with"),
        (lambda tensors, info: info["sentence"].update(layers=[0, 10**30]), "layers are"),
        (lambda tensors, info: info["sentence"].update(layers=[0, 2**31]), "layers are"),
        (lambda tensors, info: info["sentence"].update(dim=10**30), "dim is"),
        (lambda tensors, info: info["sentence"].update(dim=2**31), "dim is 2147483648; it must be 1 or more"),
    ],
)
def test_values_that_cannot_be_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "x"
    state = state_of([batch(6, 1)], info={"layer_names": ["one", "two"]})
    state.save(path)
    ConeState.load(path)
    rewritten(path, change)
    with pytest.raises(StateFileError, match=message) as refused:
        ConeState.load(path)
    assert str(path) in str(refused.value)


def test_what_is_no_state_file_is_named(tmp_path: Path) -> None:
    from cone_kernels.state import file as state_file

    path = tmp_path / "x"
    path.mkdir()
    with pytest.raises(StateFileError, match="x: is a folder"):
        ConeState.load(path)
    headers = {
        "deep": "[" * 100_000 + "]" * 100_000,
        "huge": '{"state": ' + "9" * 5000 + "}",
        "nan": '{"state": NaN}',
        "infinite": '{"state": -Infinity}',
    }
    for name, info in headers.items():
        save_file({"a": torch.zeros(1)}, tmp_path / name, {"schema": state_file.SCHEMA, "info": info, "sha256": ""})
        with pytest.raises(StateFileError, match=f"{name}: its header is not JSON"):
            ConeState.load(tmp_path / name)
    metadata = {"schema": state_file.SCHEMA, "info": "{}", "sha256": ""}
    save_file({"a": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "bf16", metadata)
    with pytest.raises(StateFileError, match=r"bf16: a is of torch.bfloat16, which no state file has"):
        ConeState.load(tmp_path / "bf16")
    metadata["info"] = json.dumps({key: {} for key in ("state", "sentence", "token")})
    save_file({"a": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "bf16", metadata)
    with pytest.raises(StateFileError, match=r"bf16: a is of torch.bfloat16, which no state file has"):
        ConeState.load(tmp_path / "bf16")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentences_without_a_token_are_counted_in_the_layers_that_were_given(pooling: str) -> None:
    state = ConeState.empty([3, 4, 5], 6, pooling=pooling, poolings=["max"] if pooling == "mean" else ())
    mask = torch.tensor([[1, 1], [0, 0], [0, 0]]).bool()
    hidden = [normal(3, 2, 6, seed=layer) for layer in range(2)]
    state.update(hidden, mask, layers=[5, 4])
    state.update(hidden[:1], mask, layers=[5])
    for moments in (state.sentence, *state.poolings.values()):
        assert moments.n_empty.sum(-1).tolist() == [0, 2, 4]
        assert moments.count.sum(-1).tolist() == [0, 1, 2]


def test_layers_may_come_in_another_order() -> None:
    hidden, mask = batch(20, seed=1)
    state = ConeState.empty(range(2), DIM)
    state.update(hidden[::-1], mask, layers=[1, 0])
    wanted = state_of([(hidden, mask)])
    assert state.sentence.fingerprint() == wanted.sentence.fingerprint()
    assert state.token.fingerprint() == wanted.token.fingerprint()
