"""The demo's captions are the project's own: distinct, grammatical in number, and the same everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from cone_kernels.corpora.captions import _agree, captions


def test_captions_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256("\n".join(captions(2000)).encode()).hexdigest()
    assert digest == "d817d36a46dcda2a47bab5fd1a257d3fb0b9624add7dc71f66411d178f390dd6"
    assert captions(50) == captions(2000)[:50]
    assert set(captions(50, seed=1)).isdisjoint(captions(50))


def test_captions_are_distinct_and_of_varied_length() -> None:
    found = captions(20_000)
    assert len(set(found)) == 20_000
    lengths = {len(caption.split()) for caption in found}
    assert lengths == set(range(min(lengths), 26))
    assert min(lengths) in {4, 5}


@pytest.mark.parametrize(
    ("who", "does", "expected"),
    [
        ("a lumberjack", "splits logs", "splits logs"),
        ("two roofers", "splits logs", "split logs"),
        ("two greyhounds", "fetches a stick", "fetch a stick"),
        ("three men in hard hats", "mixes mortar", "mix mortar"),
        ("two girls in shin guards", "practises a backflip", "practise a backflip"),
        ("a bride and her aunt", "tries on a hat", "try on a hat"),
        ("the twins next door", "races down the slide", "race down the slide"),
        ("the girls of a school team", "does a cartwheel", "do a cartwheel"),
        ("a row of poplars", "is dusted with frost", "is dusted with frost"),
    ],
)
def test_verbs_agree_with_their_subjects(who: str, does: str, expected: str) -> None:
    assert _agree(who, does) == expected


def test_no_caption_is_a_sentence_of_snli(snli: Path) -> None:
    def bare(sentence: str) -> str:
        return re.sub(r"[^a-z ]", "", sentence.lower()).strip()

    records = [json.loads(line) for line in snli.read_text().splitlines()]
    theirs = {bare(record[field]) for record in records for field in ("premise", "hypothesis")}
    assert theirs.isdisjoint(map(bare, captions(20_000)))


def test_the_number_asked_for_is_checked() -> None:
    assert captions(0) == []
    with pytest.raises(ValueError, match="n: got 20001"):
        captions(20_001)
