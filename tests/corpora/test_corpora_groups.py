"""Sentences that belong together by a field of their records: one jackknife group, whatever the format and order."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from cone_kernels import ConeState, metrics, sums
from cone_kernels.corpora import Corpus, CorpusError, reading
from cone_kernels.experiments import center, layers, measure, rotation
from cone_kernels.runs.part import merge
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

RECORDS = [
    {"document": f"d{i // 3 % 20}", "text": f"{WORDS[i]} {WORDS[i * 7 % 80]}", "title": WORDS[-1 - i]}
    for i in range(70)
]


def group_of(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "little") % 64


def groups_of(corpus: Corpus) -> dict[str, int | None]:
    found = {}
    for text in corpus:
        found[text] = corpus.group
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("grouped")
    found = {ending: folder / f"a.{ending}" for ending in ("jsonl", "csv", "parquet", "arrow")}
    found["jsonl"].write_text("\n".join(map(json.dumps, RECORDS)))
    with found["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(RECORDS[0]))
        writer.writeheader()
        writer.writerows(RECORDS)
    table = pa.Table.from_pylist(RECORDS)
    parquet.write_table(table, found["parquet"], row_group_size=9)
    with pa.OSFile(str(found["arrow"]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writing:
        writing.write_table(table, max_chunksize=11)
    return found


def test_the_groups_are_those_of_the_records_in_every_format(files: dict[str, Path]) -> None:
    wanted = {record["text"]: group_of(record["document"]) for record in reversed(RECORDS)}
    assert len(set(wanted.values())) > 10
    for file in files.values():
        corpus = Corpus(file, fields=["text"], group_by="document")
        assert groups_of(corpus) == wanted, file
        assert corpus.summary.group_by == "document"
    given = {"fields": ["text"], "group_by": "document"}
    assert groups_of(Corpus.from_sentences(RECORDS, **given)) == wanted
    assert groups_of(Corpus.from_sentences(RECORDS, shuffle=True, **given)) == wanted
    drawn = groups_of(Corpus.from_sentences(RECORDS, sample=9, **given))
    assert drawn == {text: wanted[text] for text in drawn}
    both = groups_of(Corpus.from_sentences(RECORDS, fields=["title", "text"], group_by="document"))
    assert all(both[record["title"]] == both[record["text"]] for record in RECORDS)
    assert set(groups_of(Corpus.from_sentences(RECORDS, fields=["text"])).values()) == {None}
    assert reading.GROUPS == sums.GROUPS


def test_records_without_a_group_are_refused_by_policy(tmp_path: Path, files: dict[str, Path]) -> None:
    records = [{"text": "one", "id": 1}, {"text": "two"}, {"text": "three", "id": None}, {"text": "four", "id": [4]}]
    corpus = Corpus.from_sentences(records, group_by="id")
    assert list(corpus) == ["one"]
    assert corpus.summary.dropped["missing_field"] == 3
    assert "field 'id' is None; it must name a group" in corpus.summary.examples[0]
    with pytest.raises(CorpusError, match="it must name a group"):
        list(Corpus.from_sentences(records, group_by="id", malformed="raise"))
    for ending in ("csv", "parquet", "arrow"):
        with pytest.raises(CorpusError, match="the fields asked for are 'id'"):
            list(Corpus(files[ending], fields=["text"], group_by="id"))
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(CorpusError, match=r"group_by: got 'id'; it must be None, as .*a.txt is a text file"):
        Corpus(tmp_path / "a.txt", group_by="id")
    with pytest.raises(CorpusError, match=r"group_by: got 'id'; it must be None, as sentences\[0\] is a string"):
        list(Corpus.from_sentences(["one"], group_by="id"))


def test_of_equal_sentences_the_first_one_is_drawn() -> None:
    records = [{"text": text, "id": at} for at, text in enumerate(("one", "two", "one", "two"))]
    one, two, *_ = groups = [group_of(at) for at in range(4)]
    assert len(set(groups)) == 4
    corpus = Corpus.from_sentences(records, group_by="id", dedup=False)
    assert [group for _, group in corpus.drawn(4, among=4)] == groups
    assert corpus.drawn(1, among=4) in ([("one", one)], [("two", two)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


OPTIONS: dict[str, Any] = {"field": "text", "group_by": "document"}


def test_whole_documents_are_left_out_for_the_standard_error(model: Path, files: dict[str, Path]) -> None:
    measured = measure(model, files["jsonl"], keep_vectors=[2], shard_size=16, **OPTIONS)
    rows = torch.cat([block for _, block in measured.vectors[2].blocks()]).double()
    corpus = Corpus(files["jsonl"], fields=["text"], group_by="document")
    groups = torch.tensor([group for group in groups_of(corpus).values() if group is not None])
    assert measured.state.sentence.count[2].tolist() == torch.bincount(groups, minlength=64).tolist()

    def cosine(kept: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(kept, dim=1)
        return float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))

    left = torch.tensor([cosine(rows[groups != group]) for group in groups.unique()], dtype=torch.float64)
    wanted = math.sqrt((len(left) - 1) * float(left.var(unbiased=False)))
    assert float(metrics.anisotropy_stderr(measured.state.sentence)[2]) == pytest.approx(wanted, rel=1e-4)
    assert measured.corpus["group_by"] == "document"


def test_groups_are_the_same_for_every_level_and_what_is_made_of_vectors(model: Path, files: dict[str, Path]) -> None:
    found = layers(model, files["parquet"], **OPTIONS)
    sentences = found.state.sentence.count[1]
    assert found.state.token.n_sentences[1].tolist() == sentences.tolist()
    opened = center(model, files["jsonl"], layer=1, **OPTIONS)
    assert opened.before.stderr == pytest.approx(found.layers[1].sentence.stderr, rel=1e-5)
    plain = center(model, files["jsonl"], layer=1, field="text")
    assert opened.before.anisotropy == pytest.approx(plain.before.anisotropy, abs=1e-9)
    assert opened.before.stderr != pytest.approx(plain.before.stderr, rel=1e-3)
    assert rotation([model, model], files["jsonl"], k=1, **OPTIONS).verdict[0][1] in ("share", "undecided")


def test_parts_merge_to_the_same_bits(model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": 16, "threads": 1, **OPTIONS}
    whole = layers(model, files["jsonl"], **options)
    parts = []
    for number in range(2):
        parts.append(tmp_path / f"{number}.safetensors")
        layers(model, files["jsonl"], shard=f"{number}/2", save_state=parts[-1], **options)
    merge(parts, tmp_path / "whole.safetensors")
    assert ConeState.load(tmp_path / "whole.safetensors").fingerprint() == whole.manifest["state_fingerprint"]
