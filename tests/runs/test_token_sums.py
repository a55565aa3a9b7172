"""The plan of a corpus's tokens, and sums of tokens in padded and in packed batches, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.token_plan import DRAWN, KEPT, WORDS, TokenPlan
from cone_kernels.runs.token_sums import LayerTokens, TokenSums
from cone_kernels.state.sentence_batch import SentenceBatch

LENGTHS = [4, 1, 6, 3, 6, 2, 9]


def shard(first_id: int = 0, seed: int = 0) -> EncodedShard:
    """Sentences that begin with 1, which the tokenizer added; words 2 to 5."""
    generator = np.random.default_rng(seed)
    ids = np.concatenate([np.array([1, *generator.integers(2, 6, n - 1)]) for n in LENGTHS])
    return EncodedShard(first_id, {"input_ids": ids}, LENGTHS, (ids == 1).astype(np.int64), 0)


def plan_of(*shards: EncodedShard) -> TokenPlan:
    counts, sentences, lengths = np.zeros(6, np.int64), np.zeros(6, np.int64), np.zeros(10, np.int64)
    for one in shards:
        for row in np.split(one.columns["input_ids"], np.cumsum(one.lengths)[:-1]):
            counts += np.bincount(row[1:], minlength=6)
            sentences += np.bincount(np.unique(row[1:]), minlength=6)
            lengths[len(row) - 1] += 1
    return TokenPlan.of_counts(counts, sentences, np.array([1]), lengths)


def gathered(
    plan: TokenPlan, shards: list[EncodedShard], rows: list[Tensor], batches: Any, packed: bool
) -> LayerTokens:
    sums = TokenSums(plan)
    for one, hidden in zip(shards, rows, strict=True):
        sums.begin_shard(one)
        parts = torch.split(hidden, one.lengths)
        for batch in batches:
            ids = torch.tensor(batch) + one.first_id
            chosen = [parts[at] for at in batch]
            sums.begin_batch(one, batch)
            if packed:
                starts = torch.tensor([0, *np.cumsum([len(part) for part in chosen])])
                sums.take(3, torch.cat(chosen), SentenceBatch.of(torch.cat(chosen), None, starts, ids))
            else:
                padded = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=7.0)
                mask = torch.tensor([len(part) for part in chosen])[:, None] > torch.arange(padded.shape[1])
                sums.take(3, padded, SentenceBatch.of(padded, mask, None, ids))
        sums.end_shard()
    return sums.layers[3]


def flat(found: LayerTokens) -> dict[str, Tensor]:
    sums = {
        f"{by} {number} {name}": total
        for by, classes in found.divisions.items()
        for number, one in classes.items()
        for name, total in one.items()
    }
    return sums | found.words | vars(found.sentences) | {"kept": found.kept.nan_to_num(-1)}


@pytest.mark.parametrize(
    ("batches", "packed"),
    [([[6, 5, 4, 3, 2, 1, 0]], False), ([[0, 2], [1], [6, 3, 4, 5]], True), ([[at] for at in range(7)], False)],
)
def test_padded_and_packed_batches_of_any_sentences_add_up_to_the_same(batches: Any, packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shards = [shard(7 * at, seed=at) for at in range(3)]
    rows = [torch.randn(sum(LENGTHS), 8, generator=generator, dtype=torch.float64) for _ in shards]
    rows[1][4] = 0
    rows[2][6] = torch.inf
    plan = plan_of(*shards)
    wanted = flat(gathered(plan, shards, rows, [[0, 1, 2, 3, 4, 5, 6]], False))
    found = flat(gathered(plan, shards, rows, batches, packed))
    assert list(found) == list(wanted)
    for name, total in found.items():
        torch.testing.assert_close(total, wanted[name], rtol=1e-12, atol=1e-12, msg=name)
    assert (
        int(sum(total.sum() for name, total in found.items() if name.startswith("position") and "count" in name)) == 91
    )
    assert int(sum(total.sum() for name, total in found.items() if name.startswith("special") and "n_" in name)) == 2


def test_words_are_drawn_among_those_of_five_sentences_and_kept_evenly() -> None:
    shards = [shard(7 * at, seed=at) for at in range(20)]
    plan, seen = plan_of(*shards), None
    assert (plan.eligible, plan.words.tolist()) == (4, [2, 3, 4, 5])
    places, kept, drawn = [], [], []
    seen = plan.nothing_seen()
    for one in shards:
        classes, seen = plan.classes_of(one, seen)
        places += classes.word[classes.word >= 0].tolist()
        kept += classes.kept_word[classes.kept_word >= 0].tolist()
        drawn += classes.kept_drawn[classes.kept_drawn >= 0].tolist()
    assert np.bincount(places).tolist() == plan.word_sentences.tolist() == seen.sentences.tolist()
    assert sorted(kept) == list(range(4 * KEPT))
    assert sorted(drawn) == list(range(min(DRAWN, seen.tokens)))
    assert seen.tokens == plan.counts.sum()


def test_no_more_words_than_are_asked_for() -> None:
    often = np.full(300, 9)
    plan = TokenPlan.of_counts(often, often, np.array([0]), np.array([0, 0, 5]))
    assert (len(plan.words), len(set(plan.words.tolist())), plan.eligible) == (WORDS, WORDS, 300)
    again = TokenPlan.of_counts(often, often, np.array([0]), np.array([0, 0, 5]))
    assert plan.words.tolist() == again.words.tolist()
    assert plan.sizes.tolist() == [2] * 5


def test_ranks_and_places() -> None:
    counts = np.array([0, 5, 9, 9, 1])
    plan = TokenPlan.of_counts(counts, counts, np.array([0]), np.array([0]))
    assert plan.ranks.tolist() == [5, 3, 1, 2, 4]
    ids = np.array([0, *([2] * 69), 4])
    one = EncodedShard(0, {"input_ids": ids}, [71], (ids == 0).astype(np.int64), 0)
    classes, _ = plan.classes_of(one, plan.nothing_seen())
    assert classes.position[[0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 69, 70]].tolist() == [
        0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8
    ]  # fmt: skip
    assert classes.special[:2].tolist() == [1, 0]
    assert classes.frequency[:2].tolist() == [0, 1]
    wide = TokenPlan.of_counts(np.arange(20_000, 0, -1), np.zeros(20_000, np.int64), np.array([]), np.array([0]))
    ids = np.array([9, 10, 99, 100, 999, 1000, 9_999, 10_000])
    one = EncodedShard(0, {"input_ids": ids}, [8], np.zeros(8, np.int64), 0)
    assert wide.classes_of(one, wide.nothing_seen())[0].frequency.tolist() == [1, 2, 2, 3, 3, 4, 4, 5]
