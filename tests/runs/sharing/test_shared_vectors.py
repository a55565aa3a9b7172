"""Sentence vectors of runs that several processes share: the bits of a single process, in parts, workers and ranks."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner

from cone_kernels import experiments
from cone_kernels.cli import main
from cone_kernels.corpora import Corpus
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.runner import run
from cone_kernels.runs.sentence_vectors import SentenceVectors, united
from cone_kernels.runs.sharing.ranks import process_group
from cone_kernels.runs.sharing.shared_run import merged_parts
from cone_kernels.state.file import StateFileError
from tests.support.encoding_folders import save_tiny_encoder
from tests.support.forked import forked_workers  # noqa: F401 - a fixture
from tests.support.gloo_ranks import run_ranks
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

# Each length in a shard is a batch of its own: three of them, and as many shards as two processes want.
TEXTS = [" ".join(WORDS[(i * 7 + j * 3) % 90] for j in range(1 + i * 5 % 9 // 3 * 3)) for i in range(72)]
OPTIONS: dict[str, Any] = {"shard_size": 8, "threads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("models")
    save_checkpoint(base / "two", seed=1)
    return [save_tiny_encoder(base / "one"), base / "two"]


@pytest.fixture(scope="module")
def loaded(folders: list[Path]) -> LoadedModel:
    return load_model(folders[0])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(TEXTS))
    return file


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel, corpus: Path) -> Measurement:
    """A single process; layer 1 and the last are kept."""
    return measure(loaded, corpus, second_moment=True, keep_vectors=(1, -1), **OPTIONS)


def sha256(vectors: SentenceVectors) -> str:
    return hashlib.sha256(b"".join(block.numpy().tobytes() for _, block in vectors.blocks(7))).hexdigest()


def hashes(measured: Measurement) -> dict[int, str]:
    return {layer: sha256(vectors) for layer, vectors in measured.vectors.items()}


def without_manifests(result: Any) -> Any:
    """A result as JSON data, without what tells of the run and where it was written."""
    if isinstance(result, dict):
        left_out = ("manifest", "vectors_file", "file")
        return {name: without_manifests(value) for name, value in result.items() if name not in left_out}
    return [without_manifests(value) for value in result] if isinstance(result, (list, tuple)) else result


@pytest.mark.parametrize("processes", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3)), 2, 12])
def test_parts_unite_to_the_vectors_of_a_single_process(
    loaded: LoadedModel, corpus: Path, alone: Measurement, tmp_path: Path, processes: int
) -> None:
    # Of 9 shards some of 12 processes get none.
    each = [{"save_state": tmp_path / str(i), "keep_vectors": [1, -1]} for i in range(processes)]
    held = set[int]()
    for i, one in enumerate(each):
        part = measure(loaded, corpus, second_moment=True, shard=f"{i}/{processes}", **one, **OPTIONS)
        for vectors in part.vectors.values():
            ids = {first + row for first, n in vectors.spans for row in range(n)}
            assert len(ids) == len(vectors)
        held |= ids if part.vectors else set()
    assert held == set(range(len(TEXTS)))
    whole, vectors = merged_parts(each)
    assert {layer: sha256(kept) for layer, kept in vectors.items()} == hashes(alone)
    assert {layer: kept.spans for layer, kept in vectors.items()} == dict.fromkeys((1, 3), ((0, len(TEXTS)),))
    assert whole.close().fingerprint() == alone.state.fingerprint()
    assert "vectors" not in whole.facts or processes == 1


def test_a_part_without_its_vectors_is_refused(loaded: LoadedModel, corpus: Path, tmp_path: Path) -> None:
    each = [{"save_state": tmp_path / str(i), "keep_vectors": [-1]} for i in range(2)]
    for i, one in enumerate(each):
        measure(loaded, corpus, shard=f"{i}/2", **one, **OPTIONS)
    file = tmp_path / "1.layer-3"
    content = file.read_bytes()
    for damaged, words in (
        (content[:-40], "has 40 bytes less than the sentence vectors that were written"),
        (content[:-1] + bytes([content[-1] ^ 1]), "has other content than the sentence vectors that were written"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(StateFileError, match=f"1.layer-3: {words}"):
            merged_parts(each)
    file.unlink()
    with pytest.raises(StateFileError, match=r"1.layer-3: there is no such file"):
        merged_parts(each)


def test_spans_of_rows_with_gaps(tmp_path: Path) -> None:
    rows = torch.arange(60, dtype=torch.float64).reshape(20, 3)
    part, rest = SentenceVectors(3, torch.float64, tmp_path / "v"), SentenceVectors(3, torch.float64)
    for first, n in ((4, 2), (6, 3), (15, 5)):
        part.append(rows[first : first + n], first)
    for first, n in ((0, 4), (9, 6)):
        rest.append(rows[first : first + n], first)
    assert part.spans == ((4, 5), (15, 5))
    assert [(first, len(block)) for first, block in part.blocks(4)] == [(4, 4), (8, 1), (15, 4), (19, 1)]
    assert torch.equal(part.read(16, 2), rows[16:18])
    for first, n in ((3, 2), (8, 2), (9, 1)):
        with pytest.raises(ValueError, match=f"first_id: got {first} and n={n}; they must lie within one of the spans"):
            part.read(first, n)
    with pytest.raises(ValueError, match="first_id: got 19 after sentence 19; it must be 20 or more"):
        part.append(rows[:1], 19)
    parts = [rest, part]
    whole = united([one.header() for one in parts], 20, lambda which, first, n: parts[which].read(first, n))
    assert torch.equal(torch.cat([block for _, block in whole.blocks()]), rows)
    with pytest.raises(ValueError, match="vectors: got those of 20 sentences; it must be all 21 of the corpus"):
        united([one.header() for one in parts], 21, lambda which, first, n: parts[which].read(first, n))
    with pytest.raises(ValueError, match="vectors: got sentence 9 after the first 4; each sentence must be there once"):
        united([rest.header()], 20, lambda which, first, n: rest.read(first, n))
    with pytest.raises(ValueError, match=r"vectors: got the widths and dtypes \[\(3, 'float64'\), \(4, "):
        united([rest.header(), SentenceVectors(4).header()], 20, lambda which, first, n: rest.read(first, n))


def test_a_file_is_cut_back_to_what_its_header_tells(tmp_path: Path) -> None:
    rows = torch.randn(9, 2)
    vectors = SentenceVectors(2, file=tmp_path / "v")
    vectors.append(rows[:6])
    header = json.loads(json.dumps(vectors.header()))
    vectors.append(rows[6:])
    again = SentenceVectors.open(tmp_path / "v", header)
    again.append(rows[6:])
    assert again.header() == vectors.header()
    assert torch.equal(torch.cat([block for _, block in again.blocks()]), rows)
    for change in ({"dim": 0}, {"dtype": "int8"}, {"spans": [[0, 4], [3, 2]]}, {"spans": 3}, {"sha256": None}):
        with pytest.raises(StateFileError, match="v: got "):
            SentenceVectors.open(tmp_path / "v", {**header, **change})


class Stop:
    """Interrupts a run after so many sentences."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: Any) -> None:
        if done.sentences >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_run_goes_on_with_its_vectors(
    loaded: LoadedModel, corpus: Path, alone: Measurement, tmp_path: Path, damaged: bool
) -> None:
    kept: dict[str, Any] = {"keep_vectors": (1, -1), "checkpoint": tmp_path / "c", "checkpoint_every": 0}

    def measured(**options: Any) -> Measurement:
        return measure(loaded, corpus, second_moment=True, **kept, **OPTIONS, **options)

    for after in (24, 48):
        with pytest.raises(KeyboardInterrupt):
            measured(progress=Stop(after), resume=after > 24)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "c.layer-1", "c.layer-3", "c.previous"]
    rows = RunPart.load(tmp_path / "c").sentences
    with (tmp_path / "c.layer-3").open("r+b") as file:
        if damaged:
            # The last shard: the checkpoint before knows nothing of it.
            file.seek((rows - 1) * 32 * 4)
        else:
            # As a kill in the midst of a shard leaves it.
            file.seek(0, 2)
        file.write(b"rubbish")
    found = measured(resume=True)
    assert hashes(found) == hashes(alone)
    assert found.state.fingerprint() == alone.state.fingerprint()
    finished = measured(resume=True)
    assert hashes(finished) == hashes(alone)
    with pytest.raises(ValueError, match=r"differ in options.keep_vectors \(\[1, -1\] and \[3\]\)"):
        measure(loaded, corpus, second_moment=True, **{**kept, "keep_vectors": [3]}, resume=True, **OPTIONS)
    with pytest.raises(ValueError, match=r"differ in options.keep_vectors"):
        measure(loaded, corpus, second_moment=True, checkpoint=tmp_path / "c", resume=True, **OPTIONS)


@pytest.fixture(scope="module")
def result(folders: list[Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("run")
    return experiments.run(folders, corpus, out, k=2, **OPTIONS).to_dict(), out


def assert_same(found: dict[str, Any], out: Path, result: tuple[dict[str, Any], Path]) -> None:
    expected, folder = result
    assert without_manifests(found) == without_manifests(expected)
    for kind in ("states", "axes"):
        files = sorted(file.name for file in (folder / kind).iterdir())
        assert len(files) == len(expected["models"])
        for name in files:
            assert (out / kind / name).read_bytes() == (folder / kind / name).read_bytes(), name
    assert (out / "layers.parquet").read_bytes() == (folder / "layers.parquet").read_bytes()


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_run_by_workers(folders: list[Path], corpus: Path, tmp_path: Path, workers: int) -> None:
    alone = experiments.run(folders[:1], corpus, tmp_path / "alone", k=2, **OPTIONS)
    found = experiments.run(folders[:1], corpus, tmp_path / "shared", k=2, workers=workers, **OPTIONS)
    assert_same(found.to_dict(), tmp_path / "shared", (alone.to_dict(), tmp_path / "alone"))
    assert found.manifest["options"]["workers"] == workers


def on_a_rank(folders: list[Path], corpus: Path, out: Path) -> dict[str, Any]:
    """All four, with what each rank returns; each rank names files of its own that it is to leave alone."""
    rank = dist.get_rank()
    shared: dict[str, Any] = {"distributed": True, **OPTIONS}
    axis = experiments.axis(folders[0], corpus, k=2, save_vectors=out / f"axis-{rank}", **shared)
    rotation = experiments.rotation(folders, corpus, **shared)
    center = experiments.center(folders[0], corpus, method="whitening", output=out / f"center-{rank}", **shared)
    whole = experiments.run(folders, corpus, out / f"run-{rank}", k=2, **shared)
    found = {"axis": axis, "rotation": rotation, "center": center, "run": whole}
    return {name: without_manifests(result.to_dict()) for name, result in found.items()}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_what_one_process_gives(
    folders: list[Path], corpus: Path, tmp_path: Path, result: tuple[dict[str, Any], Path], ranks: int
) -> None:
    answers = run_ranks(on_a_rank, ranks, folders, corpus, tmp_path)
    assert answers[1:] == answers[:-1]
    alone = {
        "axis": experiments.axis(folders[0], corpus, k=2, save_vectors=tmp_path / "axis", **OPTIONS),
        "rotation": experiments.rotation(folders, corpus, **OPTIONS),
        "center": experiments.center(folders[0], corpus, method="whitening", output=tmp_path / "center", **OPTIONS),
    }
    for name, expected in alone.items():
        assert answers[0][name] == without_manifests(expected.to_dict()), name
    assert_same(answers[0]["run"], tmp_path / "run-0", result)
    for name in ("axis", "center"):
        assert (tmp_path / f"{name}-0").read_bytes() == (tmp_path / name).read_bytes()
    # Rank 0 alone writes.
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["axis", "center", "axis-0", "center-0", "run-0"])


def test_groups_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(3):
        with process_group():
            assert dist.get_world_size() == 1
            dist.barrier()
        assert not dist.is_initialized()


def test_several_files_are_one_corpus(folders: list[Path], tmp_path: Path) -> None:
    for name, texts in (("a", TEXTS[:20]), ("b", TEXTS[20:60])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    files = ["--corpus", str(tmp_path / "b.txt"), "--corpus", str(tmp_path / "a.txt")]
    done = CliRunner().invoke(main, ["axis", "--model", str(folders[0]), *files, "--limit", "50", "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = experiments.axis(folders[0], [*TEXTS[20:60], *TEXTS[:10]]).to_dict()
    assert found["components"] == expected["components"]
    assert found["corpus"]["name"] == "b.txt, a.txt"
    twice = CliRunner().invoke(main, ["layers", "--model", str(folders[0]), *files, "--json", str(tmp_path / "a.txt")])
    assert (twice.exit_code, "a.txt is named twice" in twice.stderr) == (2, True)


def test_a_corpus_of_files_goes_to_other_processes(corpus: Path) -> None:
    read = Corpus(corpus, limit=50)
    first = list(read)
    again = pickle.loads(pickle.dumps(read))
    assert (again.summary.sentences, again.in_files) == (0, True)
    assert list(again) == first
    assert again.summary == read.summary
    assert not Corpus.from_sentences(TEXTS).in_files


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shard": "0/2"}, ValueError, "shard: got '0/2', but the sentence vectors of the whole corpus are needed"),
        ({"workers": 2, "shard": "0/2"}, ValueError, "workers: got 2 together with shard"),
        ({"workers": 0}, ValueError, "workers: got 0; it must be at least 1"),
        ({"workers": 2, "corpus": TEXTS}, TypeError, "corpus: got the corpus <sentences> with workers"),
        ({"distributed": True, "workers": 2}, ValueError, "distributed: got True together with workers"),
        ({"distributed": True}, ValueError, "distributed: got True outside of torchrun"),
        ({"resume": True}, ValueError, "resume: got True without a checkpoint"),
    ],
)
def test_refusals(
    folders: list[Path],
    corpus: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(error, match=message):
        experiments.axis(folders[0], **{"corpus": corpus, **options})
    if "corpus" not in options:
        with pytest.raises(error, match=message):
            experiments.center(folders[0], corpus, **options)


def test_options_of_a_run_with_states_alone_are_refused(loaded: LoadedModel, corpus: Path) -> None:
    state = run(loaded, Corpus(corpus), second_moment=True).state
    with pytest.raises(ValueError, match="workers, limit: got a value together with a state"):
        experiments.rotation(state=[state, state], workers=2, limit=5)


@pytest.mark.parametrize("command", ["axis", "rotation", "center", "run"])
def test_commands_that_need_all_vectors_have_no_parts(command: str) -> None:
    done = CliRunner().invoke(main, [command, "--shard", "0/2"])
    assert done.exit_code == 2
    assert re.search(r"No such option:? '?--shard\b", done.stderr)
