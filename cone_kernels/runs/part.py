"""A part of a run over a corpus: the sums of some shards, how far it came, and what must agree before parts unite."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cone_kernels.runs.options import refuse_replacing
from cone_kernels.runs.shard_tree import ShardTree, listed
from cone_kernels.state import file as state_file
from cone_kernels.state.agreement import refuse_differences
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.file import StateFileError

# The attributes that the header of a file has besides the tree, and the types that JSON holds them as.
_HEADER_TYPES: dict[str, Any] = {
    "identity": dict,
    "shards": list,
    "shard_size": int,
    "sentences": int,
    "corpus_sha256": str,
    "ended": bool,
    "counts": dict,
    "facts": dict,
}


@dataclass(frozen=True, eq=False)
class RunPart:
    """The shards that one process or several have run; what checkpoints and the files of `cone merge` hold.

    Attributes:
        tree: the sums.
        identity: model, options and corpus settings as JSON; they must agree before parts unite or a run goes on.
        shards: for each process whose shards these are what its option `shard` was: "0/3" for the first of three.
        shard_size: sentences of a shard.
        sentences: how many of the corpus have been passed over, run or left to other processes.
        corpus_sha256: over those sentences.
        ended: whether the corpus ended there.
        counts: sentences, tokens, batches, ... that were run; those of several parts are added up.
        facts: JSON that describes the run and need not agree: layer names, times, what the corpus dropped.

    Examples:
        >>> whole = RunPart.load("a.part").merge(RunPart.load("b.part"))
        >>> whole.close().save("whole.safetensors")
    """

    tree: ShardTree
    identity: dict[str, Any]
    shards: tuple[str, ...]
    shard_size: int
    sentences: int
    corpus_sha256: str
    ended: bool
    counts: dict[str, int]
    facts: dict[str, Any]

    @classmethod
    def begin(cls, identity: dict[str, Any], shard: str, shard_size: int) -> RunPart:
        """A run before its first sentence."""
        return cls(ShardTree(), identity, (shard,), shard_size, 0, hashlib.sha256().hexdigest(), False, {}, {})

    @property
    def n_shards(self) -> int:
        """How many shards the sentences passed over make."""
        return math.ceil(self.sentences / self.shard_size)

    @property
    def unit(self) -> str:
        """What the rows of its sums are: "sentences" of a model, or "vectors" that were given."""
        return "vectors" if "vectors.dim" in self.identity else "sentences"

    @property
    def came_to(self) -> str:
        """How many rows have been passed over, in words."""
        return f"{self.sentences} {self.unit}{' of the corpus' if self.unit == 'sentences' else ''}"

    def merge(self, other: RunPart) -> RunPart:
        """Both parts as one; neither changes.

        Raises:
            ValueError: a part stopped before the corpus ended, a shard is in both, or they are of different models,
                options or corpora, each field named.
        """
        for part in (self, other):
            if not part.ended:
                where = f"the part {', '.join(part.shards)} stopped after {part.came_to}"
                raise ValueError(f"merge: {where}; resume it first")
        refuse_differences("parts", self._agreeing(), other._agreeing())
        counts = {name: self.counts[name] + other.counts[name] for name in self.counts}
        if "token_budget" in counts:
            counts["token_budget"] = min(part.counts["token_budget"] for part in (self, other))
        return replace(
            self,
            # Which sentence vectors are in the files next to a part's file is a fact of that part alone.
            facts={name: fact for name, fact in self.facts.items() if name != "vectors"},
            tree=self.tree.merge(other.tree),
            shards=self.shards + other.shards,
            counts=counts,
        )

    def close(self) -> ConeState:
        """The state of the whole corpus, bitwise that of a single process.

        Raises:
            ValueError: the corpus has not been read to its end, or shards are missing, each named.
        """
        if not self.ended:
            raise ValueError(f"close: the run stopped after {self.came_to}; resume it first")
        return self.tree.close(self.n_shards)

    def missing(self) -> str | None:
        """The shards that have not been run, such as "shards 3, 5 of 7"; None where all have."""
        gaps = self.tree.missing(self.n_shards)
        return f"{listed(gaps)} of {self.n_shards}" if gaps else None

    def save(self, path: str | os.PathLike[str], *, previous: str | os.PathLike[str] | None = None) -> str:
        """Writes a safetensors file, whole or not at all; returns its fingerprint.

        Args:
            path: the file.
            previous: the name that a file which is there already is kept under; None replaces it.
        """
        return state_file.write(path, *self.file_content(), previous=previous)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> RunPart:
        """Reads a file that `save` wrote; the sums are put on `device` (default: the CPU).

        Raises:
            OSError: it cannot be read.
            StateFileError: the file is damaged, or holds no part of a run.
        """
        tensors, info = state_file.read(path, "partial", "nodes")
        found, headers = info["partial"], info["nodes"]
        if not isinstance(found, dict) or sorted(found) != sorted(_HEADER_TYPES) or not isinstance(headers, dict):
            raise StateFileError(f"{path}: its header must have {sorted(_HEADER_TYPES)} under partial, and nodes")
        for name, kind in _HEADER_TYPES.items():
            if type(found[name]) is not kind:
                raise StateFileError(f"{path}: {name} is {found[name]!r:.80}; it must be of type {kind.__name__}")
        counts = found["counts"].values()
        if found["shard_size"] < 1 or found["sentences"] < 0 or not all(type(n) is int and n >= 0 for n in counts):
            raise StateFileError(f"{path}: has a negative count, or shards without a sentence")
        nodes = {}
        for name, header in headers.items():
            level, _, index = name.partition(".")
            if not (level.isdecimal() and index.isdecimal() and isinstance(header, dict)):
                raise StateFileError(f"{path}: has a node {name!r}; it must be LEVEL.INDEX")
            keys = [key for key in tensors if key.startswith(f"{name}.")]
            own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in keys}
            nodes[int(level), int(index)] = ConeState.restore(path, own, header).settled(device)
        if tensors:
            raise StateFileError(f"{path}: has tensors {sorted(tensors)} that belong to none of its nodes")
        try:
            tree = ShardTree(nodes)
        except ValueError as error:
            raise StateFileError(f"{path}: its nodes are not a tree: {error}") from None
        if any((index + 1) << level > -(-found["sentences"] // found["shard_size"]) for level, index in nodes):
            raise StateFileError(f"{path}: has shards beyond the {found['sentences']} sentences passed over")
        return cls(tree, **{**found, "shards": tuple(found["shards"])})

    def nbytes(self) -> int:
        """About how many bytes a file of this part has."""
        tensors, _ = self.file_content()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + (1 << 20)

    def _agreeing(self) -> dict[str, Any]:
        """What must agree before two parts merge, by name."""
        corpus = {"corpus.sentences": self.sentences, "corpus.sha256": self.corpus_sha256}
        return {**self.identity, **corpus, "counts": sorted(self.counts)}

    def file_content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the header of a file of this part."""
        tensors: dict[str, Tensor] = {}
        headers = {}
        for (level, index), state in self.tree.nodes.items():
            own, headers[f"{level}.{index}"] = state.file_content()
            tensors |= {f"{level}.{index}.{name}": tensor for name, tensor in own.items()}
        partial = {name: getattr(self, name) for name in _HEADER_TYPES} | {"shards": list(self.shards)}
        return tensors, {"partial": partial, "nodes": headers}


def merge(
    parts: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    incomplete: bool = False,
    overwrite: bool = False,
) -> RunPart:
    """Unites the parts that runs with `shard` have saved; where all shards are there, the output is an ordinary state.

    Args:
        parts: the files, in any order.
        output: the state of the whole, bitwise that of a single process.
        incomplete: where shards are missing, write a part that can be merged further.
        overwrite: replace the output if there is one already.

    Raises:
        OSError: a file cannot be read or written; `FileExistsError`: the output is there already.
        StateFileError: a file is damaged, or holds no part of a run.
        ValueError: there is no file; a run stopped before the corpus ended; the parts are of different runs, each field
            that differs named; a shard is in two of them, or, without `incomplete`, in none.

    Examples:
        >>> merge(["a.part", "b.part"], "whole.safetensors")
    """
    if not parts:
        raise ValueError("parts: got no file; it must be at least one")
    refuse_replacing(output, overwrite, "output")
    loaded = []
    for path in parts:
        loaded.append(RunPart.load(path))
        if not loaded[-1].ended:
            where = f"stopped after {loaded[-1].came_to}"
            raise ValueError(f"{os.fspath(path)}: {where}; resume that run first")
    whole = _united(parts, loaded)
    missing = whole.missing()
    if missing is None:
        whole.close().save(output)
    elif incomplete:
        whole.save(output)
    else:
        raise ValueError(f"parts: there is none of {missing}; incomplete=True writes the shards that are there")
    return whole


def _united(paths: Sequence[str | os.PathLike[str]], parts: Sequence[RunPart]) -> RunPart:
    """All parts as one; an error names the two files that do not go together."""
    whole = parts[0]
    for at, part in enumerate(parts[1:], start=1):
        try:
            whole = whole.merge(part)
        except ValueError:
            for path, earlier in zip(paths, parts[:at], strict=False):
                try:
                    earlier.merge(part)
                except ValueError as error:
                    raise ValueError(f"{os.fspath(path)} and {os.fspath(paths[at])}: {error}") from None
            raise
    return whole
