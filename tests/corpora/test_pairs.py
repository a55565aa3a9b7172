"""Labelled pairs: which columns are read, what their labels are, what is left out, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cone_kernels.corpora.pairs import LabelledPairs, opened_pairs, read_pairs
from cone_kernels.corpora.reading import CorpusError


def written(folder: Path, records: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    """A file of records, in the format of its name."""
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path
    cut = "," if name.endswith(".csv") else "\t"
    lines = [list(records[0]), *(list(record.values()) for record in records)]
    path.write_text("".join(cut.join(map(str, line)) + "\n" for line in lines))
    return path


NLI = [
    {"premise": "a b", "hypothesis": "a", "label": "entailment"},
    {"premise": "a b", "hypothesis": "c", "label": "contradiction"},
    {"premise": "d", "hypothesis": "e", "label": "neutral"},
    {"premise": "d", "hypothesis": "f", "label": "-"},
]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.tsv"])
def test_entailment_is_one_kind_and_all_else_the_other(tmp_path: Path, name: str) -> None:
    pairs = read_pairs(written(tmp_path, NLI, name))
    assert (pairs.measure, pairs.positive, pairs.columns) == ("auc", "entailment", ("premise", "hypothesis", "label"))
    assert pairs.texts == ("a b", "a", "c", "d", "e")
    assert (pairs.pairs, pairs.labels) == (((0, 1), (0, 2), (3, 4)), (1.0, 0.0, 0.0))
    assert pairs.groups() == [0, 0, 0, 1, 1]
    assert pairs.dropped == {"no_label": 1}
    assert pairs.to_dict()["texts"] == 5


def test_groups_join_pairs_through_chains_of_texts(tmp_path: Path) -> None:
    chain = [("a", "b"), ("c", "d"), ("e", "f"), ("d", "e"), ("b", "b2")]
    records = [{"text1": one, "text2": two, "label": at % 2} for at, (one, two) in enumerate(chain)]
    pairs = read_pairs(written(tmp_path, records))
    by_text = dict(zip(pairs.texts, pairs.groups(), strict=True))
    assert by_text == {"a": 0, "b": 0, "b2": 0, "c": 1, "d": 1, "e": 1, "f": 1}


@pytest.mark.parametrize(
    ("labels", "positive", "numbers"),
    [
        ([0, 1, 1], "1", [0, 1, 1]),
        (["1", "0", "0"], "1", [1, 0, 0]),
        ([True, False, True], "true", [1, 0, 1]),
        (["yes", "no", "No"], "true", [1, 0, 0]),
        ([-1, 1, 1], "1", [0, 1, 1]),
        (["not_entailment", "entailment", "entailment"], "entailment", [0, 1, 1]),
        (["contradiction", "entailment", "neutral", "not_entailment"], "entailment", [0, 1, 0, 0]),
        (["true", "no", "yes", "false"], "true", [1, 0, 1, 0]),
        ([2, "2.0", True], "2", [1, 1, 0]),
    ],
)
def test_labels_of_two_kinds(tmp_path: Path, labels: list[Any], positive: str, numbers: list[int]) -> None:
    records = [{"sentence1": f"a{at}", "sentence2": f"b{at}", "label": one} for at, one in enumerate(labels)]
    pairs = read_pairs(written(tmp_path, records))
    assert (pairs.measure, pairs.positive, list(pairs.labels)) == ("auc", positive, numbers)


def test_graded_scores_and_what_was_asked_for(tmp_path: Path) -> None:
    records = [{"sentence1": f"a{at}", "sentence2": f"b{at}", "score": at / 2} for at in range(5)]
    path = written(tmp_path, records, "sts.tsv")
    pairs = read_pairs(path)
    assert (pairs.measure, pairs.positive, pairs.labels) == ("spearman", None, (0.0, 0.5, 1.0, 1.5, 2.0))
    assert read_pairs(written(tmp_path, records[:3])).measure == "spearman"
    with pytest.raises(CorpusError, match="5 numbers; for measure 'auc' they must be two, and for graded scores say"):
        read_pairs(path, "auc")
    one = [{**record, "score": "1.0" if at else "1"} for at, record in enumerate(records)]
    with pytest.raises(CorpusError, match="1 numbers; for measure 'auc' they must be two"):
        read_pairs(written(tmp_path, one))
    two = [{**record, "score": at % 2} for at, record in enumerate(records)]
    assert read_pairs(written(tmp_path, two), "spearman").measure == "spearman"
    both = [{**record, "entailment_label": "neutral" if at else "entailment"} for at, record in enumerate(records)]
    assert read_pairs(written(tmp_path, both), "auc").labels == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert read_pairs(written(tmp_path, both), "spearman").columns[-1] == "score"


def test_queries_and_relevant_texts(tmp_path: Path) -> None:
    records = [{"Query": "q", "positive": "p1", "negative": "n"}, {"Query": "q", "positive": "p2", "negative": "n"}]
    pairs = read_pairs(written(tmp_path, records))
    assert (pairs.measure, pairs.labels, pairs.columns) == ("mrr", (), ("Query", "positive", "negative"))
    assert (pairs.pairs, pairs.negatives, pairs.groups()) == (((0, 1), (0, 3)), ((0, 2), (0, 2)), [0, 0, 0, 0])
    assert read_pairs(written(tmp_path, records), "recall@5").measure == "recall@5"
    answers = [{"sentence1": "q", "sentence2": "a"}, {"sentence1": "same", "sentence2": "same"}]
    asked = read_pairs(written(tmp_path, answers), "mrr")
    assert (asked.measure, len(asked.pairs), asked.dropped) == ("mrr", 1, {"malformed_record": 1})


def test_what_is_in_no_pair_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv.gz"
    rows = b"premise,hypothesis,label\na,b,neutral\nc,,neutral\nd,e,\nf,g\nh\xff,i,entailment\n\n"
    path.write_bytes(gzip.compress(rows))
    pairs = read_pairs(path)
    assert pairs.texts == ("a", "b", "h\ufffd", "i")
    assert pairs.dropped == {"empty": 2, "malformed_record": 1, "no_label": 1}
    assert "pairs.csv.gz:4" in pairs.examples[0]
    assert (pairs.name, pairs.sha256) == ("pairs.csv.gz", hashlib.sha256(rows).hexdigest())


def test_records_without_two_texts_or_a_label_are_counted_and_named(tmp_path: Path) -> None:
    # An em space is no text either. A pair of one text twice is one, where it has a label.
    records: list[dict[str, Any]] = [
        {"premise": "a", "hypothesis": "b", "label": "neutral", "negative": "n"},
        {"premise": "a", "label": "neutral"},
        {"premise": 3, "hypothesis": "b", "label": "neutral"},
        {"premise": "a", "hypothesis": "b", "label": None},
        {"premise": "a", "hypothesis": "\u2003", "label": "neutral"},
        {"premise": "a", "hypothesis": "a", "label": "entailment"},
    ]
    path = written(tmp_path, records)
    pairs = read_pairs(path)
    assert (pairs.texts, pairs.pairs, pairs.labels) == (("a", "b"), ((0, 1), (0, 0)), (0.0, 1.0))
    assert (pairs.columns, pairs.negatives) == (("premise", "hypothesis", "label"), ())
    assert pairs.dropped == {"empty": 1, "missing_field": 2, "no_label": 1}
    assert pairs.examples == (
        f"{path}:2: dropped, field 'hypothesis' is missing",
        f"{path}:3: dropped, field 'premise' is 3, no string",
        f"{path}:4: dropped, field 'label' is None: no label",
    )


@pytest.mark.parametrize(
    ("record", "measure", "words"),
    [
        ({"a": "x", "b": "y"}, None, "'a', 'b'; it must have two of texts: premise and hypothesis"),
        ({"query": "x", "label": 1}, None, "'query', 'label'; it must have two of texts"),
        ({"positive": "y", "label": 1}, None, "'positive', 'label'; it must have two of texts"),
        ({}, None, "none; it must have two of texts"),
        ({"sentence1": "x", "sentence2": "y"}, None, r"need a label, one of .*\(--measure mrr\)"),
        ({"query": "x", "positive": "y"}, "auc", "measure 'auc' needs a label"),
        ({"query": "x", "positive": "y", "answer": "z"}, None, "'positive', 'answer' may each be the text"),
        ({"query": "x", "positive": "y", "label": 1}, "mrr", "leave out the other records, and the column 'label'"),
        ({"text1": "x", "text2": "y", "label": 1, "score": 2.0}, None, r"'label', 'score' may each .*\(--measure\)"),
    ],
)
def test_columns_that_are_not_understood(tmp_path: Path, record: dict[str, Any], measure: Any, words: str) -> None:
    with pytest.raises(CorpusError, match=rf"^pairs: .*pairs.jsonl has the columns .*{words}"):
        read_pairs(written(tmp_path, [record]), measure)


@pytest.mark.parametrize(
    ("labels", "measure", "words"),
    [
        ([0, 1, 2], None, r"if they stand for kinds, write them as .*--measure spearman"),
        ([0, 1, 2], "auc", "3 numbers; for measure 'auc' they must be two"),
        (["good", "bad"], None, "'bad', 'good'; they must be numbers, or 'entailment'"),
        (["entailment", "entailment"], None, "there must be two that differ"),
        (["1", "nan"], "spearman", "numbers must be finite"),
        (["1", "1.0"], "auc", "1 numbers; for measure 'auc' they must be two"),
        ([[0], [1]], None, r"'\[0\]', '\[1\]'; they must be numbers"),
    ],
)
def test_labels_that_are_not_understood(tmp_path: Path, labels: list[Any], measure: Any, words: str) -> None:
    records = [{"premise": f"a{at}", "hypothesis": "b", "label": one} for at, one in enumerate(labels)]
    with pytest.raises(CorpusError, match=rf"^pairs: .* has in the column 'label' the labels .*{words}"):
        read_pairs(written(tmp_path, records), measure)


def test_files_and_arguments_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"^pairs: got .*\.txt; its name must end in \.jsonl, \.csv or \.tsv"):
        read_pairs(tmp_path / "pairs.txt")
    with pytest.raises(FileNotFoundError, match=r"^pairs: there is no file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CorpusError, match=r"empty\.jsonl has no record"):
        read_pairs(tmp_path / "empty.jsonl")
    path = written(tmp_path, [NLI[3]] * 4)
    said = "; ".join(f"{path}:{line}: dropped, field 'label' is '-': no label" for line in (1, 2, 3))
    with pytest.raises(CorpusError, match=f"has no pair to use: {re.escape(said)}$"):
        read_pairs(path)
    (tmp_path / "pairs.csv.gz").write_text("premise,hypothesis,label\n")
    with pytest.raises(CorpusError, match=r"pairs\.csv\.gz is not a gzip file"):
        read_pairs(tmp_path / "pairs.csv.gz")
    (tmp_path / "pairs.csv").write_text("premise,premise,label\na,b,neutral\n")
    with pytest.raises(CorpusError, match="has the columns 'premise', 'premise', 'label'; each must be there once"):
        read_pairs(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match=r"^measure: got 'map'; it must be one of auc, spearman, mrr, or recall@K"):
        read_pairs(path, "map")
    with pytest.raises(ValueError, match=r"^measure: got 'auc' without pairs"):
        opened_pairs(None, "auc")
    with pytest.raises(ValueError, match=r"^pairs: got some without a model"):
        opened_pairs(path, None, no_model=True)
    read = opened_pairs(written(tmp_path, NLI), None)
    assert isinstance(read, LabelledPairs)
    assert opened_pairs(read, "auc") is read
    with pytest.raises(ValueError, match=r"^measure: got 'mrr' with pairs that were read for 'auc'"):
        opened_pairs(read, "mrr")
