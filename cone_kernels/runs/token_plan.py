"""What is known of the tokens of a corpus before a run: how common each is, and which ones are looked at one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cone_kernels.models.loaded import LoadedModel
from cone_kernels.names import TOKEN_DIVISIONS
from cone_kernels.runs.encoded_shard import EncodedShard, counted_tokens, text_blocks

WORDS, LEAST_SENTENCES, KEPT, DRAWN = 64, 5, 16, 512
"""So many words at most are drawn among those that as many sentences have; so many occurrences of each are kept, and so
many tokens that are drawn among all."""

_POSITIONS, _RANKS = (TOKEN_DIVISIONS[name].classes for name in ("position", "frequency"))
_SEED, _WINDOW = 18, 8192
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """The tokens of a shard, sentence after sentence, as numbers (n,) int64; made by `TokenPlan.classes_of`.

    Attributes:
        special: 0 for a token of the text, else 1 + the place of its id in `TokenPlan.special_ids`.
        position, frequency: places in the `classes` of `TOKEN_DIVISIONS`.
        word: the first occurrence of a word in a sentence has the word's place in `TokenPlan.words`, all else -1.
        kept_word, kept_drawn: where its hidden states are kept, of words at word * `KEPT` + number; -1 where not.
    """

    special: Integers
    position: Integers
    frequency: Integers
    word: Integers
    kept_word: Integers
    kept_drawn: Integers

    def at(self, tokens: Integers) -> TokenClasses:
        """Those of some tokens of the shard, by their places in it."""
        return TokenClasses(**{name: column[tokens] for name, column in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Seen:
    """What the shards before had: sentences with each word (W,), and tokens of the text."""

    sentences: Integers
    tokens: int


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """The tokens of a corpus, counted.

    Attributes:
        special_ids: (s,) ids of the tokens that the tokenizer added.
        counts: (V,) how often each token occurs in the texts, up to the largest id that does.
        ranks: (V,) 1 for the token that occurs most, of equals the smaller id first.
        words: (W,) ids of the tokens that are looked at one by one, drawn among those that `LEAST_SENTENCES` have.
        word_sentences: (W,) how many sentences have each.
        eligible: how many tokens they were drawn among.
        sizes: (s,) tokens of the texts' sentences, of those with two or more; 512 evenly over all where there are more.
        drawn: places, among all tokens of the texts, of those drawn from all, ascending.
    """

    special_ids: Integers
    counts: Integers
    ranks: Integers
    words: Integers
    word_sentences: Integers
    eligible: int
    sizes: Integers
    drawn: Integers

    @classmethod
    def of(cls, loaded: LoadedModel, corpus: Iterable[str]) -> TokenPlan:
        """Reads a corpus once, and tokenizes it as the run will."""
        counts, sentences, added, lengths = (np.zeros(0, np.int64) for _ in range(4))
        stream = iter(corpus)
        while window := list(islice(stream, _WINDOW)):
            for block in text_blocks(window):
                ids, own, sentence = _flat(*counted_tokens(loaded, block))
                counts = _added(counts, np.bincount(ids[own]))
                width = 1 + int(ids.max(initial=0))
                sentences = _added(sentences, np.bincount(np.unique(sentence[own] * width + ids[own]) % width))
                added = _added(added, np.bincount(ids[~own]))
                lengths = _added(lengths, np.bincount(np.bincount(sentence[own])))
        return cls.of_counts(counts, sentences, np.flatnonzero(added), lengths)

    @classmethod
    def of_counts(cls, counts: Integers, sentences: Integers, special_ids: Integers, lengths: Integers) -> TokenPlan:
        """The plan for tokens that occur so often (V,), in so many sentences (V,); (T,) have so many tokens."""
        generator = np.random.default_rng(_SEED)
        ranks = np.empty(len(counts), np.int64)
        ranks[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
        eligible = np.flatnonzero(sentences >= LEAST_SENTENCES)
        words = np.sort(generator.choice(eligible, min(WORDS, len(eligible)), replace=False))
        total = int(counts.sum())
        drawn = np.sort(generator.choice(total, min(DRAWN, total), replace=False))
        several = np.cumsum(np.where(np.arange(len(lengths)) > 1, lengths, 0))
        n = int(several[-1]) if len(several) else 0
        s = min(n, DRAWN)
        sizes = np.searchsorted(several, (2 * np.arange(s) + 1) * n // (2 * max(s, 1)), side="right")
        return cls(special_ids, counts, ranks, words, sentences[words], len(eligible), sizes, drawn)

    def nothing_seen(self) -> Seen:
        """Before the first shard."""
        return Seen(np.zeros(len(self.words), np.int64), 0)

    def classes_of(self, shard: EncodedShard, seen: Seen) -> tuple[TokenClasses, Seen]:
        """The classes of the tokens of a shard, and what was seen with it.

        Args:
            shard: it knows which tokens the tokenizer added.
            seen: what the shards before had.
        """
        assert shard.special is not None
        ids, own = shard.columns["input_ids"], shard.special == 0
        lengths = np.array(shard.lengths, dtype=np.int64)
        sentence = np.repeat(np.arange(len(lengths)), lengths)
        number = np.arange(len(ids)) - (np.cumsum(lengths) - lengths)[sentence]  # from 0 in each sentence
        position = np.ceil(np.log2(number + 1)).astype(np.int64).clip(max=_POSITIONS.index("65 and on"))
        position[(number > 0) & (number == lengths[sentence] - 1)] = _POSITIONS.index("last")
        ranks = self.ranks[np.where(own, ids, 0)] if len(self.ranks) else np.ones(len(ids), np.int64)
        frequency = np.where(own, np.ceil(np.log10(ranks)).astype(np.int64).clip(1, len(_RANKS) - 1), 0)
        special = np.where(own, 0, 1 + np.searchsorted(self.special_ids, ids))
        word, kept_word, sentences = self._words(ids, own, sentence, seen)
        place = seen.tokens + np.cumsum(own) - 1  # among all tokens of the texts
        kept_drawn = np.full(len(ids), -1)
        chosen = own & np.isin(place, self.drawn)
        kept_drawn[chosen] = np.searchsorted(self.drawn, place[chosen])
        classes = TokenClasses(special, position, frequency, word, kept_word, kept_drawn)
        return classes, Seen(sentences, seen.tokens + int(own.sum()))

    def _words(
        self, ids: Integers, own: NDArray[np.bool_], sentence: Integers, seen: Seen
    ) -> tuple[Integers, Integers, Integers]:
        """Of each token its word and where it is kept, -1 for none; and in how many sentences each word was seen."""
        word, kept = np.full(len(ids), -1), np.full(len(ids), -1)
        if not len(self.words):
            return word, kept, seen.sentences
        place = np.searchsorted(self.words, ids).clip(max=len(self.words) - 1)
        found = np.flatnonzero(own & (self.words[place] == ids))
        first = found[np.unique(sentence[found] * len(self.words) + place[found], return_index=True)[1]]
        first = first[np.argsort(place[first], kind="stable")]  # word after word, each in the order of its sentences
        word[first] = place[first]
        often = np.bincount(place[first], minlength=len(self.words))
        before = np.cumsum(often) - often
        nth = seen.sentences[place[first]] + np.arange(len(first)) - before[place[first]]
        kept[first] = _spread(nth, self.word_sentences[place[first]], place[first])
        return word, kept, seen.sentences + often


def _spread(nth: Integers, sentences: Integers, word: Integers) -> Integers:
    """Where the nth occurrence of a word is kept, -1 for not at all: `KEPT` of them, evenly over the corpus.

    Neighbours are often alike, as a premise and its hypotheses.
    """
    several = sentences > KEPT
    number = np.where(several, -(-nth * KEPT // sentences), nth)
    kept = np.where(several, (number < KEPT) & (nth == number * sentences // KEPT), nth < sentences)
    return np.where(kept, word * KEPT + number, -1)


def _flat(ids: list[list[int]], added: list[list[int]]) -> tuple[Integers, NDArray[np.bool_], Integers]:
    """The ids of all tokens, which are of the text, and the sentence of each."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    total = int(lengths.sum())
    flat = np.fromiter(chain.from_iterable(ids), np.int64, total)
    own = np.fromiter(chain.from_iterable(added), np.int64, total) == 0
    return flat, own, np.repeat(np.arange(len(lengths)), lengths)


def _added(one: Any, other: Any) -> Integers:
    """The sum of two counts, which may be of different lengths."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    found: Integers = longer.copy()
    found[: len(shorter)] += shorter
    return found
