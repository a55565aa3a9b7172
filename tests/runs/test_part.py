"""Parts of a run, made by hand: what they say of themselves, how they unite, and which files are none."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cone_kernels import ConeState
from cone_kernels.runs.part import RunPart, merge
from cone_kernels.runs.shard_tree import ShardTree
from cone_kernels.state import file as state_file
from cone_kernels.state.file import StateFileError

DIM = 2


def part_of(shards: list[int], shard: str = "0/2", sentences: int = 17, **changed: Any) -> RunPart:
    """Of a corpus in shards of eight; each state is of one sentence."""
    tree = ShardTree()
    for number in shards:
        state = ConeState.empty([0], DIM)
        state.update([torch.ones(1, 1, DIM) + number], torch.ones(1, 1), sentence_ids=torch.tensor([8 * number]))
        tree = tree.add(number, state)
    counts = {"sentences": len(shards), "token_budget": 100 + len(shards)}
    facts = {"started": shard, "vectors": "v"}
    made = RunPart(tree, {"options.k": 3}, (shard,), 8, sentences, "abc", True, counts, facts)
    return replace(made, **changed)


def test_a_run_before_its_first_sentence() -> None:
    part = RunPart.begin({"model": "m"}, "1/3", 8)
    assert (part.identity, part.shards, part.shard_size, part.sentences) == ({"model": "m"}, ("1/3",), 8, 0)
    assert (part.corpus_sha256, part.ended) == (hashlib.sha256(b"").hexdigest(), False)
    assert (part.n_shards, part.counts, part.facts, part.tree.nodes) == (0, {}, {}, {})


@pytest.mark.parametrize(("sentences", "shards"), [(0, 0), (1, 1), (8, 1), (9, 2), (17, 3)])
def test_the_last_shard_may_have_less_sentences(sentences: int, shards: int) -> None:
    assert part_of([], sentences=sentences).n_shards == shards


def test_how_far_a_part_came_is_said_in_its_unit() -> None:
    assert part_of([]).came_to == "17 sentences of the corpus"
    assert part_of([], identity={"vectors.dim": 3}).came_to == "17 vectors"


def test_what_of_two_parts_is_added_up_and_what_is_the_first_one_s() -> None:
    first, second = part_of([0]), part_of([1, 2], "1/2")
    both = first.merge(second)
    assert (both.shards, both.counts) == (("0/2", "1/2"), {"sentences": 3, "token_budget": 101})
    # The vectors beside a part's file are its own.
    assert (both.facts, first.facts) == ({"started": "0/2"}, {"started": "0/2", "vectors": "v"})
    assert second.merge(first).counts == both.counts
    assert (first.missing(), second.missing(), both.missing()) == ("shards 1 to 2 of 3", "shard 0 of 3", None)
    assert both.close().fingerprint() == part_of([0, 1, 2]).close().fingerprint()
    without = [replace(part, counts={"sentences": 2}) for part in (first, second)]
    assert without[0].merge(without[1]).counts == {"sentences": 4}


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        ({"identity": {"options.k": 4}}, "options.k (3 and 4)"),
        ({"sentences": 18}, "corpus.sentences (17 and 18)"),
        ({"corpus_sha256": "abd"}, "corpus.sha256 ('abc' and 'abd')"),
        ({"counts": {"sentences": 1}}, "counts (['sentences', 'token_budget'] and ['sentences'])"),
    ],
)
def test_what_must_agree_before_parts_unite(changed: dict[str, Any], differing: str) -> None:
    with pytest.raises(ValueError, match=f"^merge: the two parts differ in {re.escape(differing)}$"):
        part_of([0]).merge(part_of([1], "1/2", **changed))


def test_a_part_that_stopped_is_named() -> None:
    stopped = replace(part_of([1], ended=False), shards=("1/3", "2/3"))
    for one, other in ((stopped, part_of([0])), (part_of([0]), stopped)):
        said = "merge: the part 1/3, 2/3 stopped after 17 sentences of the corpus; resume it first"
        with pytest.raises(ValueError, match=f"^{said}$"):
            one.merge(other)


def test_the_two_files_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abcd"]
    for file, part in zip(files, (part_of([0]), part_of([1]), part_of([2]), part_of([1])), strict=True):
        part.save(file)
    for these, pair in ((files, (1, 3)), (files[:2] + files[1:2], (1, 1)), ([files[1], files[3]], (1, 3))):
        said = f"{files[pair[0]]} and {files[pair[1]]}: merge: both have shard 1"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            merge(these, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_whole_is_not_written_over_another_file(tmp_path: Path) -> None:
    part_of([0, 1]).save(tmp_path / "part")
    (tmp_path / "whole").write_bytes(b"of another run")
    with pytest.raises(FileExistsError, match=r"^output: .*whole is there already"):
        merge([tmp_path / "part"], tmp_path / "whole")
    with pytest.raises(ValueError, match=r"^parts: there is none of shard 2 of 3; incomplete=True"):
        merge([tmp_path / "part"], tmp_path / "whole", overwrite=True)
    assert (tmp_path / "whole").read_bytes() == b"of another run"
    assert merge([tmp_path / "part"], tmp_path / "whole", overwrite=True, incomplete=True).missing() == "shard 2 of 3"
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "part").read_bytes()


def test_a_file_has_about_so_many_bytes(tmp_path: Path) -> None:
    part = part_of([0, 2])
    tensors, _ = part.file_content()
    # A mebibyte for the header.
    assert part.nbytes() == sum(tensor.numpy().nbytes for tensor in tensors.values()) + 2**20


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("partial", {"more": 1}, "its header must have ['corpus_sha256', 'counts', 'ended', 'facts', 'identity', "),
    ("partial", {"sentences": -1}, "has a negative count, or shards without a sentence"),
    ("partial", {"shard_size": 0}, "has a negative count, or shards without a sentence"),
    ("partial", {"counts": {"a": 1, "b": -1}}, "has a negative count, or shards without a sentence"),
    ("partial", {"counts": {"a": 1.5, "b": 1}}, "has a negative count, or shards without a sentence"),
    ("partial", {"counts": {"a": True}}, "has a negative count, or shards without a sentence"),
    ("partial", {"sentences": 16}, "has shards beyond the 16 sentences passed over"),
    ("nodes", {"x.3": {}}, "has a node 'x.3'; it must be LEVEL.INDEX"),
    ("nodes", {"3.x": {}}, "has a node '3.x'; it must be LEVEL.INDEX"),
    ("nodes", {"3": {}}, "has a node '3'; it must be LEVEL.INDEX"),
    ("nodes", {"0.1": 3}, "has a node '0.1'; it must be LEVEL.INDEX"),
]


@pytest.mark.parametrize(("where", "changed", "said"), WRONG)
def test_a_header_that_is_wrong_in_one_place_is_refused(
    tmp_path: Path, where: str, changed: dict[str, Any], said: str
) -> None:
    tensors, info = part_of([0, 2]).file_content()
    info[where] |= changed
    state_file.write(tmp_path / "a", tensors, info)
    with pytest.raises(StateFileError, match=f"^{re.escape(f'{tmp_path}/a: {said}')}"):
        RunPart.load(tmp_path / "a")


@pytest.mark.parametrize("where", ["partial", "nodes"])
def test_a_header_that_is_a_list_is_refused(tmp_path: Path, where: str) -> None:
    tensors, info = part_of([0, 2]).file_content()
    state_file.write(tmp_path / "a", tensors, info | {where: list(info[where])})
    with pytest.raises(StateFileError, match=r"a: its header must have .* under partial, and nodes$"):
        RunPart.load(tmp_path / "a")


@pytest.mark.parametrize("changed", [{"counts": {}}, {"counts": {"a": 0}}, {"shard_size": 1}, {"sentences": 24}])
def test_the_least_numbers_of_a_header_are_taken(tmp_path: Path, changed: dict[str, Any]) -> None:
    part = part_of([0, 2], **changed)
    part.save(tmp_path / "a")
    again = RunPart.load(tmp_path / "a")
    assert (again.counts, again.shard_size, again.sentences) == (part.counts, part.shard_size, part.sentences)
    nothing = part_of([], sentences=0)
    nothing.save(tmp_path / "b")
    assert RunPart.load(tmp_path / "b").n_shards == 0
