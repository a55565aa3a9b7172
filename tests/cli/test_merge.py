"""Parts of a run: whichever process ran which shards, together they are the single run to the last bit."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from cone_kernels import ConeState
from cone_kernels.cli import main
from cone_kernels.corpora import Corpus
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.part import RunPart, merge
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.runner import Run, run
from cone_kernels.state import file as state_file
from cone_kernels.state.file import StateFileError
from tests.support.moment_cases import GROUP_OF
from tests.support.tiny_checkpoints import THREE_LENGTHS, save_checkpoint, sentences

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"shard_size": 8, "second_moment": True, "poolings": ["cls"]}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return load_model(folder)


TEXTS = sentences(53, THREE_LENGTHS)  # six whole shards of eight and one of five


@pytest.fixture(scope="module")
def ran(loaded: LoadedModel) -> Callable[[str], Run]:
    """The run of a process by its `shard`; each is run once, and no test changes it."""
    return functools.cache(lambda shard: run(loaded, TEXTS, shard=shard, **OPTIONS))


@pytest.fixture
def whole(loaded: LoadedModel, ran: Callable[[str], Run], one_thread: None) -> Run:
    return ran("0/1")


@pytest.mark.parametrize("processes", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5)), 3, 9])
def test_processes_together_are_the_single_run(
    ran: Callable[[str], Run], whole: Run, tmp_path: Path, processes: int
) -> None:
    files = [tmp_path / f"{process}.part" for process in range(processes)]
    for process, file in enumerate(files):
        ran(f"{process}/{processes}").part.save(file)
    random.Random(processes).shuffle(files)
    united = merge(files, tmp_path / "whole")
    assert whole.state.save(tmp_path / "single") == whole.state.fingerprint()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "single").read_bytes()
    again = Run.of(united, ConeState.load(tmp_path / "whole"))
    for name in ("sentences", "tokens", "batches", "token_budget", "layer_names", "final_norm", "backends"):
        assert getattr(again, name) == getattr(whole, name), name


def test_a_part_is_of_its_own_sentences(loaded: LoadedModel) -> None:
    reports: list[Progress] = []
    part = run(loaded, TEXTS, shard="1/3", progress=reports.append, **OPTIONS)
    assert part.sentences == part.state.sentence.count[0].sum() == 2 * 8
    assert (reports[-1].sentences, reports[-1].expected) == (16, 18)
    # Its sentences keep their index in the corpus, and so their jackknife groups.
    mine = [index for index in range(53) if index // 8 % 3 == 1]
    counts = part.state.sentence.count[0].tolist()
    assert counts == [sum(GROUP_OF[index] == group for index in mine) for group in range(64)]


def test_a_process_without_a_shard_has_the_state_of_no_sentence(ran: Callable[[str], Run], whole: Run) -> None:
    part = ran("8/9")
    assert (part.sentences, part.batches) == (0, 0)
    assert part.layer_names == whole.layer_names
    assert part.state.merge(whole.state).fingerprint() == whole.state.fingerprint()


def test_a_merge_of_merges_is_the_same(ran: Callable[[str], Run], whole: Run, tmp_path: Path) -> None:
    files = [tmp_path / str(process) for process in range(4)]
    for process, file in enumerate(files):
        ran(f"{process}/4").part.save(file)
    with pytest.raises(ValueError, match=r"there is none of shards 1, 3, 5 of 7; incomplete=True"):
        merge([files[0], files[2]], tmp_path / "half")
    assert not (tmp_path / "half").exists()
    assert merge([files[0], files[2]], tmp_path / "half", incomplete=True).missing() is not None
    merge([files[3], tmp_path / "half", files[1]], tmp_path / "whole")
    assert ConeState.load(tmp_path / "whole").fingerprint() == whole.state.fingerprint()


def test_no_shard_counts_twice(ran: Callable[[str], Run], tmp_path: Path) -> None:
    part = ran("1/2").part
    part.save(tmp_path / "a")
    part.save(tmp_path / "d")
    ran("0/2").part.save(tmp_path / "c")
    with pytest.raises(ValueError, match=f"{tmp_path / 'a'} and {tmp_path / 'd'}: merge: both have shard 1"):
        merge([tmp_path / "c", tmp_path / "a", tmp_path / "d"], tmp_path / "b")
    with pytest.raises(ValueError, match="both have shard 5"):
        part.merge(ran("2/3").part)


def test_parts_of_other_runs_are_refused(loaded: LoadedModel, ran: Callable[[str], Run], tmp_path: Path) -> None:
    part = ran("0/2").part

    def other(texts: Any = TEXTS, model: LoadedModel = loaded, **options: Any) -> RunPart:
        return run(model, texts, shard="1/7", **{**OPTIONS, **options}).part  # of one shard, which `part` has not

    save_checkpoint(tmp_path, seed=1)
    for theirs, named in (
        (other(token_budget=77), r"options.token_budget \(4096 and 77\)"),
        (other(threads=2), r"options.threads \(1 and 2\)"),
        (other(shard_size=9), r"options.shard_size \(8 and 9\)"),
        (other(backend="reference"), r"options.backend \('auto' and 'reference'\)"),
        (other(model=load_model(tmp_path)), r"model.weights_sha256 \("),
        (other(TEXTS[:-1]), r"corpus.sentences \(53 and 52\), corpus.sha256"),
        (other([*TEXTS[:3], "w5", *TEXTS[4:]]), "differ in corpus.sha256"),
        (other(Corpus.from_sentences(TEXTS, errors="drop")), r"corpus.errors \(None and 'drop'\)"),
    ):
        with pytest.raises(ValueError, match=named):
            part.merge(theirs)


def test_a_part_that_stopped_is_refused(whole: Run, tmp_path: Path) -> None:
    stopped = replace(whole.part, ended=False)
    stopped.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a: stopped after 53 sentences of the corpus; resume that run first"):
        merge([tmp_path / "a"], tmp_path / "b")
    for attempt in (stopped.close, lambda: stopped.merge(whole.part)):
        with pytest.raises(ValueError, match="stopped after 53 sentences of the corpus; resume it first"):
            attempt()


def test_whole_states_and_parts_are_not_mistaken_for_each_other(whole: Run, tmp_path: Path) -> None:
    whole.state.save(tmp_path / "state")
    whole.part.save(tmp_path / "part")
    with pytest.raises(StateFileError, match=r"the state of a whole run \(such states are added up by ConeState.merge"):
        merge([tmp_path / "state"], tmp_path / "b")
    with pytest.raises(StateFileError, match=r"a part of a run \(`cone merge` makes a state of all its parts"):
        ConeState.load(tmp_path / "part")
    with pytest.raises(ValueError, match="parts: got no file"):
        merge([], tmp_path / "b")


def test_a_part_comes_back_as_it_was(whole: Run, tmp_path: Path) -> None:
    sha256 = whole.part.save(tmp_path / "a")
    again = RunPart.load(tmp_path / "a")
    assert list(again.tree.nodes) == [(2, 0), (1, 2), (0, 6)]
    for name in ("identity", "shards", "shard_size", "sentences", "corpus_sha256", "ended", "counts", "facts"):
        assert getattr(again, name) == getattr(whole.part, name), name
    assert again.save(tmp_path / "b") == sha256
    assert abs(again.nbytes() - (tmp_path / "a").stat().st_size) < 2 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info["partial"].pop("ended"), "its header must have"),
        (lambda info: info["partial"].update(sentences="many"), "sentences is 'many'; it must be of type int"),
        (lambda info: info["partial"].update(ended=1), "ended is 1; it must be of type bool"),
        (lambda info: info["partial"].update(shard_size=0), "shards without a sentence"),
        (lambda info: info["partial"].update(counts={"sentences": -1}), "a negative count"),
        (lambda info: info["partial"].update(sentences=40), "shards beyond the 40 sentences"),
        (lambda info: info["nodes"].update({"../a": {}}), r"a node '../a'; it must be LEVEL.INDEX"),
        (lambda info: info["nodes"].pop("0.6"), "that belong to none of its nodes"),
        (
            lambda info: info["nodes"]["0.6"]["state"].update(model="other"),
            "its nodes are not a tree: .*info.model",
        ),
    ],
)
def test_a_file_that_is_no_part_is_refused(whole: Run, tmp_path: Path, change: Any, message: str) -> None:
    tensors, info = copy.deepcopy(whole.part.file_content())
    change(info)
    state_file.write(tmp_path / "a", tensors, info)
    with pytest.raises(StateFileError, match=message):
        RunPart.load(tmp_path / "a")


def test_nodes_that_overlap_are_refused(whole: Run, tmp_path: Path) -> None:
    tensors, info = copy.deepcopy(whole.part.file_content())
    info["nodes"]["0.3"] = info["nodes"]["0.6"]
    tensors |= {
        name.replace("0.6.", "0.3."): value.clone() for name, value in tensors.items() if name.startswith("0.6.")
    }
    state_file.write(tmp_path / "a", tensors, info)
    with pytest.raises(StateFileError, match="its nodes are not a tree: merge: both have shard 3"):
        RunPart.load(tmp_path / "a")


def test_a_flipped_bit_is_found(whole: Run, tmp_path: Path) -> None:
    whole.part.save(tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    content[-9] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(StateFileError, match="its content has sha256"):
        RunPart.load(tmp_path / "a")
    save_file(load_file(tmp_path / "a"), tmp_path / "b")
    with pytest.raises(StateFileError, match="got schema None"):
        RunPart.load(tmp_path / "b")


def cone(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_makes_the_file_of_a_single_run(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model")
    corpus = tmp_path / "a.txt"
    corpus.write_text("\n".join(dict.fromkeys(TEXTS)))
    options = ["layers", "--model", tmp_path / "model", "--corpus", corpus, "--shard-size", "8", "--second-moment"]
    assert cone(*options, "--save-state", tmp_path / "single").exit_code == 0
    parts = [tmp_path / str(number) for number in range(3)]
    for number, part in enumerate(parts):
        done = cone(*options, "--shard", f"{number}/3", "--save-state", part, "--json", "-")
        assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["corpus"]["sentences"] == RunPart.load(part).counts["sentences"]
    done = cone("merge", *parts[:2], "-o", tmp_path / "whole")
    assert done.exit_code == 1
    assert "Error: parts: there is none of shards 2, 5 of 7" in done.stderr
    done = cone("merge", *parts[:2], "--incomplete", "-o", tmp_path / "some")
    assert done.exit_code == 0
    assert "a part: it lacks shards 2, 5 of 7" in done.stderr
    done = cone("merge", parts[2], tmp_path / "some", "-o", tmp_path / "whole")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "the state of the whole corpus" in done.stderr
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "single").read_bytes()
    (tmp_path / "whole").write_bytes(b"of another run")
    done = cone("merge", parts[2], tmp_path / "some", "-o", tmp_path / "whole")
    assert done.exit_code == 1
    assert f"Error: output: {tmp_path / 'whole'} is there already, and may be of another run" in done.stderr
    assert (tmp_path / "whole").read_bytes() == b"of another run"
    assert cone("merge", parts[2], tmp_path / "some", "--overwrite", "-o", tmp_path / "whole").exit_code == 0
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "single").read_bytes()


def test_a_part_must_be_saved(tmp_path: Path) -> None:
    done = cone("layers", "--model", "m", "--corpus", tmp_path / "a.txt", "--shard", "0/2")
    assert done.exit_code == 1
    assert "shard: got '0/2' without save_state" in done.stderr
