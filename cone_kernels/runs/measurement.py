"""What every experiment is computed from: what one pass of a model over a corpus gathered, or a state saved before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import DROP_REASONS, REPLACE_REASONS, Corpus
from cone_kernels.doctor import versions
from cone_kernels.models.names import default_layer, short_name
from cone_kernels.names import OUTPUT, Layer, place
from cone_kernels.runs.machine import machine

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.models.loaded import LoadedModel
    from cone_kernels.runs.runner import Run
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import ConeState, Moments


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one pass gathered, or a state saved before.

    Attributes:
        model: what was measured: `name`, `architecture`, `weights_sha256`, `final_norm`, ...
        corpus: what it was measured on, and what was dropped, replaced, truncated or left out.
        manifest: versions, device, backend, times and options of the run; of a state its fingerprint.
        layer_names: what each layer is, by module name.
        state: the sums.
        vectors: the sentence vectors of the layers that were kept, by layer.
        load: gives the model, the same at every call; None for a state.
        sentences: the corpus, to be read again in the order of the sentence ids; None for a state.
        rank: the number of this process among those of torchrun that have the same measurement; 0 alone writes.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    manifest: dict[str, Any]
    layer_names: tuple[str, ...]
    state: ConeState
    vectors: dict[Layer, SentenceVectors]
    load: Callable[[], LoadedModel] | None = None
    sentences: Corpus | None = None
    rank: int = 0

    @property
    def loaded(self) -> LoadedModel | None:
        """The model; None for a state. Where other processes have run it, it is loaded when this is first read."""
        return self.load() if self.load else None

    @property
    def name(self) -> str:
        """A short name of the model: the last part of its folder or hub id, two where the last one says nothing."""
        return short_name(str(self.model["name"]))

    def groups(self) -> Callable[[Tensor], Tensor]:
        """What gives the jackknife groups of sentences by their indices in the corpus.

        Where a field of the records decides them (`group_by`), the corpus is read again.

        Raises:
            ValueError: it has other sentences than the first time.
        """
        import torch

        from cone_kernels.sums import jackknife_groups

        corpus = self.sentences
        if corpus is None or corpus.group_by is None:
            return jackknife_groups
        by_index = torch.tensor([corpus.group or 0 for _ in corpus])
        if corpus.summary.fingerprint != self.corpus["fingerprint"]:
            raise ValueError("corpus: got other sentences when it was read again for their groups; it must not change")
        return lambda ids: by_index[ids]

    def layer(self, layer: Layer | None) -> Layer:
        """The layer that is looked at: a number that may be counted from the end, -1 is the last, or "output".

        Args:
            layer: None is the `default_layer`.

        Raises:
            ValueError: there is no such layer, or no output.
        """
        numbers = self.state.layers
        if layer is None:
            layer = default_layer(self.state.output is not None, self.state.pooling)
        if isinstance(layer, str):
            if layer != OUTPUT:
                raise ValueError(f"layer: got {layer!r}; it must be a number or {OUTPUT!r}")
            if self.state.output is None:
                why = (self.model.get("output") or {}).get("reason", "none was measured")
                raise ValueError(f"layer: got {OUTPUT!r} of {self.name}; it must be a number, because {why}")
            return OUTPUT
        if layer in numbers:
            return layer
        if not -len(numbers) <= layer < 0:
            raise ValueError(f"layer: got {layer}; it must be one of {numbers}, or from {-len(numbers)} to -1")
        return numbers[layer]

    def moments(self, layer: Layer) -> Moments:
        """The sums of the sentence vectors of a layer, as `layer` gives it."""
        if layer == OUTPUT:
            assert self.state.output is not None
            return self.state.output
        return self.state.sentence.select(layer)

    def why_no_axis(self, layer: Layer) -> str | None:
        """Why the sentence vectors of a layer have no axis, in words; None where there are two that were used.

        Args:
            layer: as `layer` gives it.
        """
        moments = self.moments(layer)
        used, infinite = int(moments.count[0].sum()), int(moments.n_nonfinite[0].sum())
        if used >= 2:
            return None
        zero = int(moments.n_zero[0].sum())
        advice = "; bfloat16 has no such end as float16 has at 65,504" if self.model.get("dtype") == "float16" else ""
        return (
            f"{place(layer)} has {used:,} sentence vectors to use, and two are needed: {infinite:,} are not finite and "
            f"{zero:,} are zero{advice if infinite else ''}"
        )

    def layer_name(self, layer: Layer) -> str:
        """What a layer is: the module by name; of the output the modules that make it."""
        if layer == OUTPUT:
            if "vectors" in self.model:
                return "the vectors as they were given"
            return ", ".join((self.model.get("output") or {}).get("modules", [OUTPUT]))
        return self.layer_names[self.state.layers.index(layer)]

    def kept_vectors(self, layer: Layer) -> SentenceVectors:
        """The sentence vectors of a layer, as `layer` gives it.

        Raises:
            ValueError: the measurement did not keep them.
        """
        if layer not in self.vectors:
            kept = sorted(self.vectors, key=str)
            raise ValueError(f"layer: got {layer}; the measurement kept the sentence vectors of {kept}")
        return self.vectors[layer]


def measurement_of(
    ran: Run,
    options: dict[str, Any],
    started: str,
    load_seconds: float,
    *,
    load: Callable[[], LoadedModel],
    sentences: Corpus,
    rank: int = 0,
) -> Measurement:
    """A run as a measurement.

    Args:
        ran: the run of the whole corpus, or of one part of it.
        options: what the manifest says of the options of the run.
        started: when, in ISO 8601.
        load_seconds: how long the model took to load.
        load, sentences, rank: as in `Measurement`.
    """
    facts, identity = ran.part.facts, ran.part.identity
    state = ran.state.on_cpu()
    summary, info = facts["corpus"], facts["model"]
    policies = {name: identity[f"corpus.{name}"] for name in ("errors", "malformed", "dedup")}
    return Measurement(
        model={**info, "final_norm": ran.final_norm},
        corpus={
            **summary,
            "sentences": ran.sentences,
            "dropped": {**summary["dropped"], "no_token": ran.no_token},
            "tokens": ran.tokens,
            "truncated": ran.truncated,
            "unknown_tokens": ran.unknown_tokens,
            "left_out": _left_out(state),
        },
        manifest={
            "versions": versions(),
            "started": started,
            "seconds": {"load": round(load_seconds, 3), "run": round(ran.seconds, 3)},
            "prompt": info["prompt"],
            "options": {**policies, **options},
            **machine(ran),
            "max_length": info["max_length"],
            **({"drops_unknown": True} if info.get("drops_unknown") else {}),
            "state_fingerprint": state.fingerprint(),
        },
        layer_names=ran.layer_names,
        state=state,
        vectors=ran.vectors,
        load=load,
        sentences=sentences,
        rank=rank,
    )


def from_state(state: ConeState | str | os.PathLike[str]) -> Measurement:
    """What a saved state says without its model and its corpus.

    Args:
        state: a `ConeState`, or a file that `save` wrote.

    Raises:
        OSError, StateFileError: the file cannot be read, or is damaged.

    Examples:
        >>> from_state("minilm.safetensors").state.layers
        (0, 1, 2, 3, 4, 5, 6)
    """
    from cone_kernels.state.cone_state import ConeState

    file = None if isinstance(state, ConeState) else Path(state)
    found = state.on_cpu() if isinstance(state, ConeState) else ConeState.load(state)
    info = found.info
    identity = info["model"] if isinstance(info.get("model"), dict) else {"architecture": info.get("model")}
    vectors = {"vectors": info["vectors"]} if isinstance(info.get("vectors"), dict) else {}
    names = info.get("layer_names") or [f"layer {number}" for number in found.layers]
    return Measurement(
        model={"name": file.stem if file else "state", **identity, **vectors, "final_norm": info.get("final_norm")},
        corpus=without_corpus(found),
        manifest={
            "versions": versions(),
            "state": file.name if file else None,
            "state_fingerprint": found.fingerprint(),
        },
        layer_names=tuple(names),
        state=found,
        vectors={},
    )


def without_corpus(state: ConeState, name: str | None = None) -> dict[str, Any]:
    """What a state's sums say of the corpus, or the vectors, that it is of.

    Args:
        state: of a model, or of vectors, which have no tokens.
        name: of the corpus, where it is known.
    """
    moments = state.sentence if state.layers else state.output
    assert moments is not None
    return {
        "name": name,
        "sentences": moments.rows_seen(0),
        "dropped": dict.fromkeys(DROP_REASONS, 0) | {"no_token": int(moments.n_empty[0].sum())},
        "replaced": dict.fromkeys(REPLACE_REASONS, 0),
        "examples": [],
        "tokens": state.token.rows_seen(0) if state.layers else 0,
        "left_out": _left_out(state),
    }


def labels(measurements: Sequence[Measurement]) -> list[str]:
    """The names of the models; one that comes again gets a number.

    Examples:
        >>> labels([bert, bert])
        ['bert-base-uncased', 'bert-base-uncased (2)']
    """
    names = [measurement.name for measurement in measurements]
    return [
        name if name not in names[:at] else f"{name} ({names[:at].count(name) + 1})" for at, name in enumerate(names)
    ]


def shared_corpus(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What several measurements were made on: the corpus of the runs, or where all are states what these say of theirs.

    Counts that depend on the tokenizer are added up; "sentences" is None where the corpora differ in it.
    """
    runs = [found.corpus for found in measurements if "fingerprint" in found.corpus]
    corpora = runs or [found.corpus for found in measurements]
    added = [name for name in ("tokens", "truncated", "unknown_tokens") if name in corpora[0]]
    totals: dict[str, Any] = {name: sum(one[name] for one in corpora) for name in added}
    sentences = {one["sentences"] for one in corpora}
    dropped = {**corpora[0]["dropped"], "no_token": max(one["dropped"]["no_token"] for one in corpora)}
    return {
        **corpora[0],
        **totals,
        "sentences": sentences.pop() if len(sentences) == 1 else None,
        "dropped": dropped,
        "left_out": max(found.corpus["left_out"] for found in measurements),
    }


def threads_of(*measurements: Measurement) -> AbstractContextManager[None]:
    """The CPU threads of the run, for what is computed from it: their number decides the last bits of some products."""
    from cone_kernels.devices import cpu_threads

    return cpu_threads(next((found.manifest["threads"] for found in measurements if "threads" in found.manifest), None))


def _left_out(state: ConeState) -> int:
    """Sentence vectors left out as zero or not finite, of the layer, or the output, that has most of them."""
    kept = [state.sentence] if state.layers else []
    kept += [] if state.output is None else [state.output]
    return max(int((moments.n_zero + moments.n_nonfinite).sum(1).max()) for moments in kept)
