"""Deduplication is exact in any memory; a sample is uniform, in order, and one seed draws one sample."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, spearmanr

from cone_kernels.corpora import Corpus
from cone_kernels.corpora.seen import MIN_DEDUP_MEMORY, SeenDigests

# Digests that crowd into few slots of the table, and pairs that agree in one half.
digests = st.tuples(st.integers(0, 7), st.integers(1, 7)).map(
    lambda halves: halves[0].to_bytes(8, "little") + halves[1].to_bytes(8, "big")
)


@settings(max_examples=50)
@given(st.lists(st.one_of(digests, st.binary(min_size=16, max_size=16).filter(any)), max_size=200))
def test_a_digest_is_new_once(added: list[bytes]) -> None:
    seen, reference = SeenDigests(MIN_DEDUP_MEMORY), set[bytes]()
    for digest in added:
        assert seen.add(digest) == (digest not in reference)
        reference.add(digest)
    # 64 slots, of which three quarters are filled.
    assert seen.on_disk == (len(reference) >= 48)
    seen.close()


def test_digests_that_agree_in_one_half_are_told_apart_on_disk() -> None:
    seen = SeenDigests(MIN_DEDUP_MEMORY)
    halves = [number.to_bytes(8, "big") for number in range(1, 51)]
    kept = [half + half for half in halves[:48]]
    # Of 64 slots three quarters are filled.
    assert [seen.add(digest) and seen.on_disk for digest in kept] == [False] * 47 + [True]
    clashing = [halves[at] + halves[second] for at in (0, 47) for second in (48, 49)]
    assert [seen.add(digest) for digest in clashing * 2] == [True] * 4 + [False] * 4
    assert not any(map(seen.add, kept))
    seen.close()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(50, 400))
def test_distinct_sentences_beyond_the_memory(seed: int, distinct: int) -> None:
    draw = random.Random(seed)
    sentences = [f"sentence {draw.randrange(distinct)}" for _ in range(1000)]
    corpus = Corpus.from_sentences(sentences, dedup_memory=MIN_DEDUP_MEMORY)
    expected = list(dict.fromkeys(sentences))
    assert list(corpus) == expected
    assert corpus.summary.duplicates == 1000 - len(expected)


def test_spilled_digests_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reader = iter(Corpus.from_sentences(map(str, range(1000)), dedup_memory=MIN_DEDUP_MEMORY))
    assert [next(reader) for _ in range(500)] == [str(i) for i in range(500)]
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert any(name.startswith(str(tmp_path / "cone-seen-")) for name in held)
    assert not list(tmp_path.iterdir())
    assert len(list(reader)) == 500
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    corpus = Corpus.from_sentences(map(str, range(1000)), dedup_memory=MIN_DEDUP_MEMORY)
    with pytest.raises(OSError, match="missing"):
        list(corpus)


def test_a_full_disk_is_named() -> None:
    code = (
        "import resource\n"
        "from cone_kernels.corpora import Corpus\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try: list(Corpus.from_sentences(map(str, range(10_000)), dedup_memory=1024))\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("corpus: the digests of the sentences seen cannot be kept in ")
    assert "TMPDIR" in done.stdout


def test_without_deduplication_every_sentence_is_given_out() -> None:
    corpus = Corpus.from_sentences(["a", "b", "", "a"], dedup=False)
    assert list(corpus) == ["a", "b", "a"]
    assert (corpus.summary.sentences, corpus.summary.duplicates, corpus.summary.dropped["empty"]) == (3, 0, 1)


@given(st.lists(st.text(max_size=3), max_size=30), st.integers(1, 12), st.integers(0, 2**64 - 1))
def test_a_sample_is_of_distinct_sentences_in_order(texts: list[str], size: int, seed: int) -> None:
    corpus = Corpus.from_sentences(texts, sample=size, seed=seed)
    drawn = list(corpus)
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    assert len(drawn) == min(size, len(distinct))
    assert drawn == [text for text in distinct if text in set(drawn)]
    assert corpus.summary.sample == {"size": size, "seed": seed, "drawn_from": len(distinct)}
    assert corpus.summary.complete
    assert list(corpus) == drawn
    again = Corpus.from_sentences(reversed(texts), sample=size, seed=seed)
    assert sorted(again) == sorted(drawn)
    expected = Corpus.from_sentences(drawn)
    assert list(expected) == drawn
    assert corpus.summary.fingerprint == expected.summary.fingerprint


def test_a_shuffled_corpus_has_the_same_sentences_in_another_order(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(200)]
    corpus = Corpus.from_sentences([*texts, "sentence 3", ""], shuffle=True, seed=4)
    given = list(corpus)
    assert sorted(given) == sorted(texts)
    assert given != texts
    assert list(corpus) == given
    assert (corpus.summary.shuffle, corpus.summary.sample, corpus.summary.duplicates) == (4, None, 1)
    # Neighbours are no longer neighbours.
    places = [int(text.rpartition(" ")[2]) for text in given]
    assert abs(spearmanr(places, range(200)).statistic) < 0.2
    (tmp_path / "a.txt").write_text("\n".join(reversed(texts)))
    assert list(Corpus(tmp_path / "a.txt", shuffle=True, seed=4)) == given
    assert list(Corpus.from_sentences(texts, shuffle=True)) == list(Corpus.from_sentences(texts, shuffle=True, seed=0))
    assert sorted(Corpus.from_sentences(texts, shuffle=True, limit=9)) == sorted(texts[:9])
    drawn = list(Corpus.from_sentences(texts, sample=9, shuffle=True))
    assert sorted(drawn) == sorted(Corpus.from_sentences(texts, sample=9))


def test_every_sample_is_as_likely_as_any_other() -> None:
    texts = list("abcdef")
    found = Counter(tuple(Corpus.from_sentences(texts, sample=3, seed=seed)) for seed in range(2000))
    subsets = list(itertools.combinations(texts, 3))
    assert set(found) <= set(subsets)
    # 20 subsets, 100 expected of each, so that one an eighth rarer shows; the seeds are fixed, so this either holds or
    # does not.
    assert chisquare([found[subset] for subset in subsets]).pvalue > 0.01


def test_a_sample_is_one_pass_and_the_same_from_any_file(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(500)]
    once = iter(texts)
    drawn = list(Corpus.from_sentences(once, sample=20, seed=7))
    assert next(once, None) is None
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("\n".join(texts[i * 100 : i * 100 + 100]))
    assert list(Corpus(tmp_path, sample=20, seed=7)) == drawn
    assert list(Corpus(tmp_path, sample=20, seed=8)) != drawn
    assert list(Corpus(tmp_path, sample=20)) == list(Corpus(tmp_path, sample=20, seed=0))
    assert Corpus(tmp_path, sample=20).expected_sentences() == 20


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sample": 0}, "sample: got 0; it must be at least 1"),
        ({"sample": 3, "limit": 3}, "sample: got 3 with limit=3; it must be None"),
        ({"sample": 3, "dedup": False}, "sample: got 3 with dedup=False"),
        ({"shuffle": True, "dedup": False}, "shuffle: got True with dedup=False"),
        ({"seed": 3}, "seed: got 3 without sample or shuffle"),
        ({"sample": 3, "seed": -1}, "seed: got -1; it must be from 0 to"),
        ({"sample": 3, "seed": 2**64}, "it must be from 0 to 18446744073709551615"),
        ({"dedup_memory": 1000}, "dedup_memory: got 1000; it must be at least 1024 bytes"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Corpus.from_sentences(["a"], **options)
