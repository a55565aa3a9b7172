"""Checkpoints: whatever ends a run, the one before is whole, and the resumed run has the undisturbed one's bits."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cone_kernels.corpora import Corpus
from cone_kernels.files import write_whole
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.checkpoint import Checkpoint, Interrupted
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.runner import Run, run
from cone_kernels.state.file import StateFileError
from tests.runs.test_part import part_of
from tests.support.encoding_folders import dense, save_tiny_encoder
from tests.support.forked import run_python
from tests.support.tiny_checkpoints import THREE_LENGTHS, save_checkpoint, sentences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers, so that the model's own output is in every checkpoint."""
    return save_tiny_encoder(tmp_path_factory.mktemp("bert") / "model", then=[dense(32, 16), ("Normalize", {})])


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder)


TEXTS = sentences(52, THREE_LENGTHS)  # six whole shards of eight and one of four
OPTIONS: dict[str, Any] = {"shard_size": 8, "second_moment": True, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def undisturbed(loaded: LoadedModel) -> Run:
    """The run that nothing ends before its end; no test changes it."""
    return run(loaded, TEXTS, threads=1, **OPTIONS)


@pytest.fixture(scope="module")
def first_shard(loaded: LoadedModel) -> RunPart:
    return run(loaded, TEXTS[:8], shard_size=8, threads=1).part


class Stop:
    """Interrupts a run after so many sentences."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.reports: list[Progress] = []

    def __call__(self, done: Progress) -> None:
        self.reports.append(done)
        if done.sentences >= self.after:
            raise KeyboardInterrupt


def interrupted(loaded: LoadedModel, file: Path, after: int, texts: Any = TEXTS, **options: Any) -> str:
    with pytest.raises(Interrupted) as found:
        run(loaded, texts, checkpoint=file, progress=Stop(after), **{**OPTIONS, **options})
    return str(found.value)


@pytest.mark.parametrize("every", [0, 1000])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    loaded: LoadedModel, undisturbed: Run, tmp_path: Path, every: float
) -> None:
    file = tmp_path / "c"
    # Within the fourth shard, at its end, and within the last one.
    message = interrupted(loaded, file, after=27, checkpoint_every=every)
    assert message == f"{file} holds the first 24 sentences; --resume goes on from there"
    interrupted(loaded, file, after=32, checkpoint_every=every, resume=True)
    assert RunPart.load(file).sentences == 24  # the shard was not done: a batch is reported before its shard ends
    interrupted(loaded, file, after=50, checkpoint_every=every, resume=True)
    assert RunPart.load(file).sentences == 48
    reports = Stop(1000)
    again = run(loaded, TEXTS, checkpoint=file, resume=True, progress=reports, **{**OPTIONS, "checkpoint_every": every})
    assert again.state.fingerprint() == undisturbed.state.fingerprint()
    for name in ("sentences", "tokens", "batches", "layer_names", "final_norm", "backends", "token_budget"):
        assert getattr(again, name) == getattr(undisturbed, name), name
    assert {(done.resumed_sentences, done.expected) for done in reports.reports} == {(48, 52)}
    assert sorted(os.listdir(tmp_path)) == ["c", "c.previous"]


def test_a_finished_run_is_there_again(loaded: LoadedModel, tmp_path: Path) -> None:
    done = run(loaded, TEXTS, checkpoint=tmp_path / "c", **OPTIONS)
    reports = Stop(0)
    again = run(loaded, TEXTS, checkpoint=tmp_path / "c", resume=True, progress=reports, **OPTIONS)
    assert reports.reports == []
    assert again.state.fingerprint() == done.state.fingerprint()
    assert again.layer_names == done.layer_names


def test_a_part_is_resumed_too(loaded: LoadedModel, undisturbed: Run, tmp_path: Path) -> None:
    interrupted(loaded, tmp_path / "c", after=20, shard="1/2")
    part = run(loaded, TEXTS, shard="1/2", checkpoint=tmp_path / "c", resume=True, **OPTIONS).part
    other = run(loaded, TEXTS, shard="0/2", **OPTIONS).part
    assert part.merge(other).close().fingerprint() == undisturbed.state.fingerprint()


def test_an_interruption_before_the_first_shard_writes_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    assert interrupted(loaded, tmp_path / "c", after=1) == f"no shard was done yet, so {tmp_path / 'c'} was not written"
    assert os.listdir(tmp_path) == []


def test_a_smaller_budget_is_kept(loaded: LoadedModel, tmp_path: Path) -> None:
    def refuse(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[:2].numel() > 16:
            raise torch.OutOfMemoryError

    with loaded.model.get_submodule("encoder.layer.1").register_forward_pre_hook(refuse):
        undisturbed = run(loaded, TEXTS, **OPTIONS)
        interrupted(loaded, tmp_path / "c", after=50)
        again = run(loaded, TEXTS, checkpoint=tmp_path / "c", resume=True, **OPTIONS)
    assert undisturbed.out_of_memory == again.out_of_memory > 0
    assert again.state.fingerprint() == undisturbed.state.fingerprint()


def test_a_changed_run_is_refused_with_its_differences(loaded: LoadedModel, undisturbed: Run, tmp_path: Path) -> None:
    file, other = tmp_path / "c", tmp_path / "other"
    interrupted(loaded, file, after=50)
    save_checkpoint(other, seed=1)

    def resumed(model: LoadedModel = loaded, texts: Any = TEXTS, **options: Any) -> Run:
        return run(model, texts, checkpoint=file, resume=True, **{**OPTIONS, **options})

    with pytest.raises(
        ValueError, match=r"options.second_moment \(True and False\), options.token_budget \(4096 and 9\)"
    ):
        resumed(second_moment=False, token_budget=9)
    with pytest.raises(ValueError, match=r"model.weights_sha256 \('[0-9a-f]+' and '[0-9a-f]+'\)$"):
        resumed(load_model(other))
    with pytest.raises(ValueError, match=r"shard \('0/1' and '0/2'\)$"):
        resumed(shard="0/2")
    with pytest.raises(ValueError, match=r"corpus.limit \(None and 50\)"):
        resumed(texts=Corpus.from_sentences(TEXTS, limit=50))
    with pytest.raises(ValueError, match="the first 48 sentences of the corpus are not those of the checkpoint"):
        resumed(texts=[*TEXTS[:47], "w5", *TEXTS[48:]])
    with pytest.raises(ValueError, match="the corpus has 40 sentences; the checkpoint has passed over 48"):
        resumed(texts=TEXTS[:40])
    assert resumed().state.fingerprint() == undisturbed.state.fingerprint()
    with pytest.raises(ValueError, match="the first 52 sentences of the corpus are not those"):
        resumed(texts=[*TEXTS, "w5"])
    run(loaded, TEXTS[:48], checkpoint=tmp_path / "d", **OPTIONS)
    with pytest.raises(ValueError, match="the corpus ended after 48 sentences before, and now has more"):
        run(loaded, TEXTS, checkpoint=tmp_path / "d", resume=True, **OPTIONS)


def test_a_checkpoint_is_not_overwritten_by_another_run(loaded: LoadedModel, tmp_path: Path) -> None:
    interrupted(loaded, tmp_path / "c", after=50)
    content = (tmp_path / "c").read_bytes()
    with pytest.raises(FileExistsError, match="c is there already; resume that run, or remove it"):
        run(loaded, TEXTS, checkpoint=tmp_path / "c", **OPTIONS)
    assert (tmp_path / "c").read_bytes() == content


def test_resume_without_a_checkpoint_starts_and_says_so(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(loaded, TEXTS, checkpoint=tmp_path / "c", resume=True, **OPTIONS)
    assert caplog.messages == [f"there is no checkpoint {tmp_path / 'c'} yet: starting with the first sentence"]
    assert found.sentences == 52


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    loaded: LoadedModel, undisturbed: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file, before = tmp_path / "c", tmp_path / "c.previous"
    interrupted(loaded, file, after=50)
    content = file.read_bytes()
    kept = before.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-100] if damage == "cut" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    # Before the next checkpoint is written, the whole one is the previous one; it must outlive the damaged one.
    interrupted(loaded, file, after=41, resume=True)
    assert f"resuming from {before}, 40 sentences in" in caplog.text
    assert before.read_bytes() == kept
    again = run(loaded, TEXTS, checkpoint=file, resume=True, **OPTIONS)
    assert again.state.fingerprint() == undisturbed.state.fingerprint()


def test_two_damaged_checkpoints_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    interrupted(loaded, tmp_path / "c", after=50)
    for name in ("c", "c.previous"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(
        StateFileError, match=r"no checkpoint is whole: .*c: not a readable.*c.previous: not a readable"
    ):
        run(loaded, TEXTS, checkpoint=tmp_path / "c", resume=True, **OPTIONS)


def test_the_damaged_one_does_not_replace_the_one_before(undisturbed: Run, tmp_path: Path) -> None:
    part = undisturbed.part
    first, second, third = (replace(part, facts={"number": number}) for number in range(3))
    file = Checkpoint(tmp_path / "c", every=0)
    file.save(first)
    file.save(second)
    (tmp_path / "c").write_bytes(b"nothing")
    file = Checkpoint(tmp_path / "c", every=0, resume=True)
    assert file.latest(part, torch.device("cpu")).facts == {"number": 0}
    file.save(third)
    found = [RunPart.load(tmp_path / name).facts["number"] for name in ("c", "c.previous")]
    assert found == [2, 0]


def test_the_newest_whole_one_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, before, start = tmp_path / "c", tmp_path / "c.previous", part_of([], sentences=0)

    def latest(start: RunPart = start) -> RunPart:
        return Checkpoint(file, resume=True).latest(start, torch.device("cpu"))

    assert latest() is start
    vectors = part_of([], identity={"vectors.dim": 3})
    assert latest(vectors) is vectors
    there = f"there is no checkpoint {file} yet: starting with the first"
    assert caplog.messages == [f"{there} sentence", f"{there} vector"]
    caplog.clear()
    part_of([0], sentences=8).save(before)
    with pytest.raises(
        FileExistsError, match=f"^checkpoint: {before} is there already; resume that run, or remove it$"
    ):
        Checkpoint(file)
    assert latest().sentences == 8
    file.write_bytes(b"nothing")
    assert latest().sentences == 8
    gone, damaged = caplog.messages
    assert gone == f"there is no {file}; resuming from {before}, 8 sentences in"
    assert damaged.startswith(f"{file}: not a readable")
    assert damaged.endswith(f"; resuming from {before}, 8 sentences in")
    caplog.clear()
    part_of([0, 1], sentences=16).save(file)
    assert (latest().sentences, caplog.messages) == (16, [])
    said = f"resume: {file} and this run differ in options.k (3 and 4), shard ('0/2' and '1/2')"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        latest(part_of([], "1/2", identity={"options.k": 4}))
    file.unlink()
    before.write_bytes(b"nothing")
    with pytest.raises(
        StateFileError, match=f"^resume: no checkpoint is whole: there is no {file}; {before}: not a read"
    ):
        latest()


def test_an_interrupted_run_is_written_once(tmp_path: Path) -> None:
    file, written = tmp_path / "c", []
    checkpoint = Checkpoint(file, keeper=SimpleNamespace(sync=lambda: written.append(file.exists())))  # type: ignore[arg-type]
    assert str(checkpoint.interrupted(part_of([], sentences=0))) == f"no shard was done yet, so {file} was not written"
    part = part_of([0, 1], sentences=1600)
    for _ in range(2):
        said = str(checkpoint.interrupted(part))
        assert said == f"{file} holds the first 1,600 sentences; --resume goes on from there"
    assert written == [False]
    assert RunPart.load(file).sentences == 1600
    checkpoint.interrupted(replace(part, sentences=1601))
    assert written == [False, True]


def test_a_checkpoint_that_cannot_be_written_says_what_is_left(tmp_path: Path) -> None:
    file, part = tmp_path / "c", part_of([0])

    def full() -> None:
        raise OSError(28, "No space left on device")

    keeper = SimpleNamespace(sync=full)
    checkpoint: Any = Checkpoint(file, keeper=keeper)  # type: ignore[arg-type]
    said = f"checkpoint: {file} cannot be written: No space left on device"
    with pytest.raises(OSError, match=f"^{said}$"):
        checkpoint.save(part)
    keeper.sync = lambda: None
    checkpoint.save(part)
    keeper.sync = full
    with pytest.raises(OSError, match=f"^{said}; the checkpoint before is whole, {file} or {file}.previous$"):
        checkpoint.save(part)


def test_one_is_written_every_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("cone_kernels.runs.checkpoint.time", SimpleNamespace(monotonic=lambda: clock[0]))
    file = Checkpoint(tmp_path / "c")
    found = []
    for now in (1000.0, 1299.5, 1300.0):
        clock[0] = now
        found.append(file.due)
    assert found == [False, False, True]


def test_vectors_are_on_the_disk_before_the_checkpoint_that_counts_them(first_shard: RunPart, tmp_path: Path) -> None:
    file, there = tmp_path / "c", []
    keeper: Any = SimpleNamespace(sync=lambda: there.append(file.exists()))
    Checkpoint(file, keeper).save(first_shard)
    assert (there, file.exists()) == ([False], True)


def test_the_old_file_is_kept(tmp_path: Path) -> None:
    file, before = tmp_path / "a", tmp_path / "a.previous"
    for content in (b"1", b"2", b"3"):
        write_whole(file, content, previous=before)
    assert (file.read_bytes(), before.read_bytes()) == (b"3", b"2")


def test_room_is_looked_for_ahead(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = run(loaded, TEXTS[:8], **OPTIONS).part.nbytes()
    usage = shutil.disk_usage(tmp_path)
    # One checkpoint fits; three of three nodes do not.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * size))
    with pytest.raises(OSError, match=r"must have room for \d+ MB, and \d+ MB are free$"):
        run(loaded, TEXTS, checkpoint=tmp_path / "c", **OPTIONS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("expected", "shards"), [(1000, 7), (1015, 7), (1016, 8), (None, 2)])
def test_as_much_room_as_the_whole_run_takes(
    first_shard: RunPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: int | None, shards: int
) -> None:
    """Three files with a node for each bit of the number of shards, and the vectors of the sentences to come."""
    part = first_shard
    wanted = 3 * part.nbytes() * shards + ((expected or 8) - 8) * 100
    usage = shutil.disk_usage(tmp_path)
    keeper: Any = SimpleNamespace(sentence_bytes=100)
    for free in (wanted, wanted - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        file = Checkpoint(tmp_path / "c", keeper, every=math.inf)
        if free < wanted:
            with pytest.raises(OSError, match="must have room for"):
                file.shard_done(part, expected)
        else:
            file.shard_done(part, expected)


def test_the_next_one_is_due_after_so_many_seconds(
    first_shard: RunPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("cone_kernels.runs.checkpoint.time", SimpleNamespace(monotonic=lambda: clock[0]))
    file = Checkpoint(tmp_path / "c", every=60)
    found = []
    for now in (1000, 1059, 1060, 1119, 1120):  # counted anew from the one that is written
        clock[0] = now
        found.append(file.due)
        file.shard_done(first_shard, None)
    assert found == [False, False, True, False, True]


def test_room_is_looked_for_once_there_is_a_shard_to_judge_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    file = Checkpoint(tmp_path / "c", every=math.inf)
    file.shard_done(part_of([], sentences=8), 1000)  # left to another process
    with pytest.raises(OSError, match=r"must have room for \d+ MB, and 0 MB are free$"):
        file.shard_done(part_of([1], sentences=16), 1000)


def test_room_for_the_whole_run_is_looked_for_once(
    first_shard: RunPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first shard, however many follow before a checkpoint is due: what others take meanwhile stops none.

    Nor does it a run that goes on from its checkpoint.
    """
    part = first_shard
    file, usage = Checkpoint(tmp_path / "c", every=math.inf), shutil.disk_usage(tmp_path)
    file.shard_done(part, 1000)
    file.save(part)
    resumed = Checkpoint(tmp_path / "c", every=math.inf, resume=True)
    assert resumed.latest(part, torch.device("cpu")).sentences == 8
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    file.shard_done(part, 1000)
    resumed.shard_done(part, 1000)


def test_room_that_others_have_taken_meanwhile_is_told_before_a_checkpoint_is_begun(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, asked = shutil.disk_usage(tmp_path), []

    def disk_usage(path: Path) -> Any:
        asked.append(path)  # ahead, before the first checkpoint, before the second
        return usage._replace(free=10) if len(asked) == 3 else usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    whole = "the checkpoint before is whole"
    with pytest.raises(OSError, match=rf"must have room for \d+ MB, and 0 MB are free; {whole}"):
        run(loaded, TEXTS, checkpoint=tmp_path / "c", **OPTIONS)
    assert RunPart.load(tmp_path / "c").sentences == OPTIONS["shard_size"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resume": True}, ValueError, "resume: got True without a checkpoint"),
        ({"checkpoint": "no/such/folder/c"}, FileNotFoundError, "checkpoint: there is no folder no/such/folder"),
        ({"checkpoint": "c", "checkpoint_every": -1}, ValueError, "checkpoint_every: got -1; it must be 0 or more"),
        ({"checkpoint": "c", "checkpoint_every": float("nan")}, ValueError, "checkpoint_every: got nan"),
    ],
)
def test_options_are_checked(
    loaded: LoadedModel, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(loaded, TEXTS, **options)


def kill_and_resume(folder: Path, model: Path, kills: int, full_disks: int, seed: int) -> str:
    done = run_python("-m", "tests.support.kill_and_resume", folder, model, *map(str, (kills, full_disks, seed)))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_and_resumed(folder: Path, tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, folder, 5, 2, seed=0).startswith("5 kills, 2 full disks")


@pytest.mark.slow
def test_killed_and_resumed_two_hundred_times(folder: Path, tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, folder, 200, 20, seed=1).startswith("200 kills, 20 full disks")
