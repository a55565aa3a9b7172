"""What a corpus can be read from: many files, folders, globs, standard input, remote files, data sets."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner

from cone_kernels.cli import main
from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.experiments import axis, layers
from tests.support.tiny_checkpoints import save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sentences over files of several kinds, beside files that are no corpus."""
    root = tmp_path / "data"
    (root / "b" / ".hidden").mkdir(parents=True)
    (root / "a.txt").write_text("one\ntwo\n")
    (root / "b" / "1.jsonl.gz").write_bytes(gzip.compress(b'{"premise": "two", "hypothesis": "three"}\n'))
    pq.write_table(pa.table({"text": ["four", "one"]}), root / "b" / "2.parquet")
    (root / "c.csv.zst").write_bytes(zstandard.compress(b"id,sentence\n1,five\n"))
    (root / "README.md").write_text("no sentence\n")
    (root / ".hidden.txt").write_text("hidden\n")
    (root / "b" / ".hidden" / "x.txt").write_text("hidden\n")
    return root


def fingerprint(corpus: Corpus) -> str:
    list(corpus)
    return corpus.summary.fingerprint


def test_a_folder_is_its_files_in_order(folder: Path) -> None:
    corpus = Corpus(folder)
    assert list(corpus) == ["one", "two", "three", "four", "five"]
    summary = corpus.summary
    assert (summary.name, summary.duplicates) == ("data", 2)
    assert summary.fields == ("premise", "hypothesis", "text", "sentence")
    assert fingerprint(corpus) == fingerprint(Corpus.from_sentences(["one", "two", "three", "four", "five"]))


def test_globs(folder: Path) -> None:
    assert list(Corpus(folder / "*.txt")) == ["one", "two"]
    assert list(Corpus(folder / "b" / "[12].*")) == ["two", "three", "four", "one"]
    assert list(Corpus(str(folder / "b*"))) == ["two", "three", "four", "one"]
    assert list(Corpus(folder / "**" / "*.[pc]*")) == ["four", "one", "five"]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.arrow"):
        Corpus(folder / "*.arrow")
    with pytest.raises(CorpusError, match=r"README\.md ends in '\.md'; it must end in"):
        Corpus(folder / "*[td]")
    (folder / "odd[1].txt").write_text("its own name\n")
    assert list(Corpus(folder / "odd[1].txt")) == ["its own name"]


def test_lists_of_files_are_read_in_their_order(folder: Path) -> None:
    corpus = Corpus([folder / "c.csv.zst", str(folder / "a.txt")])
    assert list(corpus) == ["five", "one", "two"]
    assert corpus.summary.name == "c.csv.zst, a.txt"
    many = [folder / "c.csv.zst", folder / "a.txt", folder / "b" / "2.parquet", folder / "b" / "1.jsonl.gz"]
    assert Corpus(many).name == "c.csv.zst, a.txt, 2.parquet and 1 more"
    with pytest.raises(ValueError, match=r"a\.txt is named twice"):
        Corpus([folder / "a.txt", folder / "*.txt"])
    with pytest.raises(ValueError, match="got no file"):
        Corpus([])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.txt"):
        Corpus([folder / "a.txt", folder / "missing.txt"])


def test_how_sentences_are_spread_over_files_leaves_the_fingerprint(tmp_path: Path) -> None:
    texts = [f"sentence {i % 70}" for i in range(100)]
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("\n".join(texts[i * 10 : i * 10 + 10]))
    assert fingerprint(Corpus(tmp_path)) == fingerprint(Corpus.from_sentences(texts))


def test_expected_sentences_over_files(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("".join(f"{i}{j:03}\n" for j in range(100)))
    corpus = Corpus(tmp_path)
    reader, found = iter(corpus), set()
    for _ in range(400):
        next(reader)
        found.add(corpus.expected_sentences())
    assert found == {400}


def test_each_file_is_named_by_its_own_lines(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"one\n\xff\n")
    (folder / "z.txt").write_bytes(b"\xfe\n")
    corpus = Corpus(folder, errors="drop")
    assert "one" in list(corpus)
    assert [example.split(": ")[0] for example in corpus.summary.examples] == [
        f"{folder / 'a.txt'}:2",
        f"{folder / 'z.txt'}:1",
    ]


def test_pipes_are_for_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(CorpusError, match=r"a\.txt is not a regular file; it must be one \(a pipe is read as -"):
        Corpus(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("form", "data", "name"),
    [
        ("txt", b"a\nb\xff\na\n", "txt"),
        ("jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n{"text": "a"}\n', "jsonl"),
        ("csv", b"text\na\nb\xff\na\n", "csv"),
    ],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, form: Any, data: bytes, name: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    corpus = Corpus("-", format=form)
    assert corpus.read_once
    assert list(corpus) == ["a", "b\ufffd"]
    assert (corpus.name, corpus.summary.duplicates) == ("-", 1)
    assert corpus.summary.examples[0].startswith(f"<stdin>:{3 if form == 'csv' else 2}: replaced")
    assert not sys.stdin.buffer.closed
    with pytest.raises(CorpusError, match="standard input has been read, which can be done once"):
        list(corpus)


def test_the_format_is_of_standard_input(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"format: got none; of - \(standard input\) it must be txt, jsonl, csv"):
        Corpus("-")
    with pytest.raises(ValueError, match="format: got 'parquet'; it must be txt, jsonl, csv"):
        Corpus("-", format="parquet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format: got 'txt' for files, whose suffix tells it; it must be None"):
        Corpus(tmp_path / "a.txt", format="txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save_checkpoint(path)
    return path


def test_standard_input_on_the_command_line(model: Path) -> None:
    arguments = ["layers", "--model", str(model), "--corpus", "-", "--format", "csv", "--json", "-"]
    done = CliRunner().invoke(main, arguments, input="id,text\n1,w5 w6\n2,w7\n3,w7\n")
    assert done.exit_code == 0
    found = json.loads(done.stdout)["corpus"]
    assert (found["name"], found["sentences"], found["duplicates"]) == ("-", 2, 1)
    arguments = ["axis", "--model", str(model), "--corpus", "-", "--format", "txt"]
    done = CliRunner().invoke(main, arguments, input="w5\nw6\n")
    assert done.exit_code == 1
    assert "standard input, which can be read once, and this reads it again; give a file" in done.stderr


def test_corpus_options_reach_the_corpus(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text\n" + "w5\n" * 3 + "".join(f"w{i}\n" for i in range(4, 20)))
    all_of_them = layers(model, file, dedup=False)
    assert (all_of_them.corpus["sentences"], all_of_them.corpus["duplicates"]) == (19, 0)
    drawn = layers(model, file, sample=5, seed=3)
    assert drawn.corpus["sample"] == {"size": 5, "seed": 3, "drawn_from": 16}
    assert drawn.corpus["fingerprint"] == fingerprint(Corpus(file, sample=5, seed=3))
    arguments = ["layers", "--model", model, "--corpus", file, "--sample", 5, "--seed", 3, "--json", "-"]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert json.loads(done.stdout)["corpus"]["fingerprint"] == drawn.corpus["fingerprint"]
    done = CliRunner().invoke(main, [*map(str, arguments[:5]), "--no-dedup", "--json", "-"])
    assert json.loads(done.stdout)["corpus"]["sentences"] == 19
    with pytest.raises(ValueError, match="format: got 'txt'; sentences given in Python have no format"):
        layers(model, ["w5"], format="txt")
    assert axis(model, file, sample=5, top=1).corpus["sentences"] == 5


@pytest.fixture
def remote(folder: Path) -> str:
    """The folder of the fixture in fsspec's memory."""
    files = fsspec.filesystem("memory")
    root = f"/corpora/{folder.parent.name}"
    files.put(str(folder), root, recursive=True)
    return f"memory:/{root}"


def test_remote_files(folder: Path, remote: str) -> None:
    local = list(Corpus(folder))
    for url in (remote, f"{remote}/", f"file://{folder}"):
        assert list(Corpus(url)) == local
    assert list(Corpus(f"{remote}/b/2.parquet")) == ["four", "one"]
    assert list(Corpus([f"{remote}/c.csv.zst", f"file://{folder}/a.txt"])) == ["five", "one", "two"]
    assert list(Corpus(f"{remote}/b/*")) == ["two", "three", "four", "one"]
    corpus = Corpus(f"{remote}/b/1.jsonl.gz", fields=["premise", "extra"])
    assert list(corpus) == ["two"]
    url = f"memory:///{remote.removeprefix('memory://')}/b/1.jsonl.gz"
    assert corpus.summary.examples == (f"{url}:1: dropped, field 'extra' is missing",)
    reader = Corpus(f"{remote}/a.txt")
    assert next(iter(reader)) == "one"
    assert reader.expected_sentences() == 2


def test_remote_files_that_are_not_there(remote: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file memory://.*/missing\.txt"):
        Corpus(f"{remote}/missing.txt")
    with pytest.raises(FileNotFoundError, match=r"no file matches memory://"):
        Corpus(f"{remote}/*.arrow")
    with pytest.raises(CorpusError, match=r"README\.md ends in '\.md'"):
        Corpus(f"{remote}/README.md")
    fsspec.filesystem("memory").makedirs("/corpora/nothing", exist_ok=True)
    with pytest.raises(IsADirectoryError, match="is a folder with no file in it"):
        Corpus("memory://corpora/nothing")
    with pytest.raises(ValueError, match="nowhere"):
        Corpus("nowhere://a.txt")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two splits, as a folder that `datasets` reads without a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "set"
    (path / "data").mkdir(parents=True)
    made = pa.table({"id": range(6000), "text": [f"s{i % 5000}" for i in range(5999)] + [None]})
    pq.write_table(made.slice(0, 4500), path / "data" / "train-00000-of-00002.parquet")
    pq.write_table(made.slice(4500), path / "data" / "train-00001-of-00002.parquet")
    pq.write_table(made.slice(7, 2), path / "data" / "test-00000-of-00001.parquet")
    return path


def test_data_sets_of_the_hub(dataset: Path) -> None:
    corpus = Corpus(f"datasets:{dataset}:train")
    assert list(corpus) == [f"s{i}" for i in range(5000)]
    assert (corpus.summary.duplicates, corpus.summary.fields) == (999, ("text",))
    assert corpus.summary.examples == (f"datasets:{dataset}:train:6000: dropped, field 'text' is None, no string",)
    assert list(Corpus(f"datasets:{dataset}:default:test", limit=1)) == ["s7"]
    assert corpus.expected_sentences() == 5000
    assert list(corpus) == [f"s{i}" for i in range(5000)]


def test_data_sets_that_cannot_be_read(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"it must be datasets:NAME:SPLIT or datasets:NAME:CONFIG:SPLIT"):
        Corpus(f"datasets:{dataset}")
    with pytest.raises(CorpusError, match=r":valid cannot be loaded: .*valid"):
        Corpus(f"datasets:{dataset}:valid")
    with pytest.raises(CorpusError, match=r"missing:train cannot be loaded: "):
        Corpus(f"datasets:{dataset}/missing:train")
    with pytest.raises(CorpusError, match="column 'id' is of int64; it must be of strings"):
        list(Corpus(f"datasets:{dataset}:train", fields=["id"]))
    (dataset / "latin" / "data").mkdir(parents=True)
    (dataset / "latin" / "data" / "train.csv").write_bytes(b"text,id\ncaf\xe9,1\n")
    with pytest.raises(CorpusError, match=r"latin:train(:1: cannot be read| cannot be loaded): .*0xe9"):
        list(Corpus(f"datasets:{dataset}/latin:train"))


@pytest.mark.parametrize(
    ("package", "path", "extra"),
    [
        ("pyarrow", "a.parquet", "parquet"),
        ("pyarrow", "a.arrow", "parquet"),
        ("pyarrow", "a.txt.zst", "parquet"),
        ("fsspec", "memory://a.txt", "remote"),
        ("datasets", "datasets:snli:train", "datasets"),
    ],
)
def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, path: str, extra: str
) -> None:
    if ":" not in path:
        (tmp_path / path).write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.chdir(tmp_path)
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ModuleNotFoundError, match=rf"{package} is not installed; .*cone_kernels\[{extra}\]"):
        Corpus(path)


def test_text_needs_none_of_the_optional_packages(folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('pyarrow', 'fsspec', 'datasets', 'zstandard'): sys.modules[name] = None\n"
        "from cone_kernels.corpora import Corpus\n"
        "print(len(list(Corpus([sys.argv[1] + '/a.txt', sys.argv[1] + '/b/1.jsonl.gz']))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"
