"""What is read a second time: a draw of a corpus's first sentences, and what cannot be read again."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cone_kernels.corpora import Corpus, CorpusError


def test_a_draw_of_the_first_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"sentence {i % 900}\n" for i in range(1000)))
    corpus = Corpus(tmp_path / "a.txt", limit=800)
    first = list(itertools.islice(corpus, 300))
    before = corpus.summary
    drawn = [text for text, group in corpus.drawn(20, among=300) if group is None]
    assert drawn == [text for text in first if text in drawn]
    assert (len(drawn), len(set(drawn))) == (20, 20)
    assert corpus.summary == before
    # Drawn by their content: another order gives the same ones, and each is as likely as any other.
    assert {text for text, _ in Corpus.from_sentences(first[::-1]).drawn(20, among=300)} == set(drawn)
    assert len(corpus.drawn(1000, among=10_000)) == 800
    of_shuffled = Corpus(tmp_path / "a.txt", shuffle=True, seed=1).drawn(20, among=300)
    assert [text for text, _ in of_shuffled] == drawn


def test_a_draw_with_groups(tmp_path: Path) -> None:
    records = [{"text": f"sentence {i}", "of": i // 10} for i in range(200)]
    corpus = Corpus.from_sentences(records, group_by="of")
    groups = {}
    for text in corpus:
        groups[text] = corpus.group
    drawn = corpus.drawn(50, among=1000)
    assert len(drawn) == 50
    assert all(group == groups[text] for text, group in drawn)


def test_an_iterator_is_read_once() -> None:
    corpus = Corpus.from_sentences(iter(["a", "b"]))
    assert corpus.read_once
    assert not Corpus.from_sentences(["a", "b"]).read_once
    assert list(corpus) == ["a", "b"]
    with pytest.raises(CorpusError, match="an iterator has been read, which can be done once; make it a list to read"):
        list(corpus)
